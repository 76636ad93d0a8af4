"""Token outliers of PrefixQuant (Chen et al. 2024, arXiv 2410.05265)."""
