"""Outliers of a run: one pass over its store for all criteria, into tables."""
