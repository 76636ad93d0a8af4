"""Checkpoints on disk and on the hub: sources of models, their files, and checks of both."""
