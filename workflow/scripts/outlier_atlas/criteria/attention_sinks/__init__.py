"""Attention sinks (Gu et al. 2024, arXiv 2410.10781)."""
