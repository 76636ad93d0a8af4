"""What a run stores: the arrays of activations and boundaries, and the records of what counts."""
