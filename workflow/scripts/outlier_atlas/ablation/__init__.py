"""Ablation of outliers: the perplexity of held-out tokens, computed through layer groups."""
