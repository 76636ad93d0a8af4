"""How much waits between the forward pass and the disk; without imports, for the Snakefile."""

from __future__ import annotations

QUEUE_BYTES = 256 * 2**20
"""Bound of what waits to be written; the forward pass waits where the disk is slower."""

HOST_QUEUE_BYTES = 32 * 2**20
"""The same where the forward pass is on the CPU, which hardly ever outruns a disk."""

THREADS = 2
"""Number of writing threads."""
