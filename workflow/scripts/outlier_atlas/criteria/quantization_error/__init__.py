"""Errors of rounding activations to number formats of few bits."""
