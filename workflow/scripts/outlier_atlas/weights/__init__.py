"""The weights of a model: a pass over its checkpoint, and what joins it with activations."""
