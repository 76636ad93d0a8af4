"""The architecture of a model by role, found from a forward pass on the meta device."""
