"""Conversion of stored codes to weights: compiled loops, their threads, and memory for results."""
