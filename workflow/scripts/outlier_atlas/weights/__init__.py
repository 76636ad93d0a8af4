"""Measurement of a model's weights: a pass over the checkpoint, and the join with activations."""
