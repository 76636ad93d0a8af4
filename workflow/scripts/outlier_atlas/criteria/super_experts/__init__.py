"""Super experts (Su et al. 2025, arXiv 2507.23279)."""
