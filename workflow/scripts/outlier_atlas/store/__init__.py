"""The store of a run: arrays of activations and boundaries, and commit records of valid rows."""
