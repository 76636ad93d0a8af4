"""Checkpoints on disk and on the hub: where a model comes from, its files, their integrity."""
