"""Magnitudes of activations by layer and by channel."""
