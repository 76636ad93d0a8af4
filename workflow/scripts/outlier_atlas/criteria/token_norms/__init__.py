"""Tokens with the largest norms."""
