"""Loading parts of a checkpoint: which tensors, how much memory they take, and reading them."""
