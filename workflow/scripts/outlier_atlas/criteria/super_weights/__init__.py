"""Super weights (Yu et al. 2024, arXiv 2411.07191)."""
