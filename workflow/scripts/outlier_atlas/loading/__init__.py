"""Loading of layers of a checkpoint: selection of tensors, memory they need, and reading."""
