"""Limits of what waits between the forward pass and the disk; for the Snakefile without imports."""

from __future__ import annotations

QUEUE_BYTES = 256 * 2**20
"""The most bytes that wait to be written; the forward pass pauses if the disk is slower."""

HOST_QUEUE_BYTES = 32 * 2**20
"""The same for a forward pass on the CPU, which is rarely faster than a disk."""

THREADS = 2
"""Number of writing threads."""
