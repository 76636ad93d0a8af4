"""Kurtosis in four variants, norms and other measures of heavy tails."""
