"""Ablation of outliers: the perplexity of held-out tokens, computed layer group by layer group."""
