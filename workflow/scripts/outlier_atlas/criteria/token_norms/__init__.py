"""The tokens of the largest norm."""
