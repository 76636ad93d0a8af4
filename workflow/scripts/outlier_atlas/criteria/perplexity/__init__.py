"""Perplexity of the run's own tokens."""
