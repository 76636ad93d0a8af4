"""LLM.int8() outlier features (Dettmers et al. 2022, arXiv 2208.07339)."""
