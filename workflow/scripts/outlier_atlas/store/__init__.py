"""The store of a run: arrays of activations and boundaries, and the records of what counts."""
