"""The largest output of each routed expert of a mixture of experts."""
