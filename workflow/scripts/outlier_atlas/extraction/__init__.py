"""Extraction of activations from tokens: the traced forward pass and the overlapped loop."""
