"""Limits of the queue between the forward pass and the disk.

The Snakefile imports this module, so it imports nothing.
"""

from __future__ import annotations

QUEUE_BYTES = 256 * 2**20
"""Maximum number of bytes that wait to be written; a full queue pauses the forward pass."""

HOST_QUEUE_BYTES = 32 * 2**20
"""Maximum number of waiting bytes for a forward pass on the CPU, rarely faster than a disk."""

THREADS = 2
"""Number of writing threads."""
