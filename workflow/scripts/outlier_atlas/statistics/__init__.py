"""Accumulators: each takes tiles of activations in any order, and merges with its like."""
