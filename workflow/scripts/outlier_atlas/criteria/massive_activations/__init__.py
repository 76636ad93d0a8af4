"""Massive activations (Sun et al. 2024, arXiv 2402.17762)."""
