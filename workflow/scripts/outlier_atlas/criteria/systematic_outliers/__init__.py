"""Systematic outliers, with token classes (An et al. 2025, arXiv 2502.06415)."""
