"""Statistics of tiles of activations.

Accumulators take tiles in any order, and two accumulators of the same kind can be merged.
"""
