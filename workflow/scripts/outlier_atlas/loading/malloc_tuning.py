"""Loading without piling up: what is freed on the way goes back to the system at once."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
"""Numbers of glibc's `mallopt`."""

KIB = 2**10
MIB = 2**20

KERNELS = "64"
CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Variables that oneDNN and torch's layer above it read: matrix products they keep prepared, each
1024 by default."""


def few_kernels() -> None:
    """Bound what is kept prepared for matrix products on the CPU.

    The experts of a mixture see other numbers of tokens in every batch, and every shape stays with
    the process: from 8 to 20 thousand tokens a small mixture gained 160 MiB, and went on. Must be
    called before the first forward pass; what the user has set stands.
    """
    for variable in CACHES:
        os.environ.setdefault(variable, KERNELS)


@contextmanager
def frugal() -> Iterator[None]:
    """While the block lasts, transformers converts one weight at a time, and glibc keeps no hoard.

    By default transformers converts weights in threads, far ahead of the one that puts them
    together: a float32 checkpoint of separate experts then takes twice its bfloat16 weights. And
    glibc lets the size from which memory goes back to the system grow with what is freed: the
    pieces of one fused tensor stay with the process. Both were measured, `benchmarks/memory.py`.
    """
    before = os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    _thresholds(mmap=128 * KIB, trim=128 * KIB)  # where glibc begins
    try:
        yield
    finally:
        # A forward pass takes and frees the same sizes all the time. Where the system gives them
        # each time, faults take a fifth of its time; 32 MiB is the most that glibc allows.
        _thresholds(mmap=32 * MIB, trim=64 * MIB)
        if before is None:
            del os.environ["HF_DEACTIVATE_ASYNC_LOAD"]
        else:
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = before


def _thresholds(mmap: int, trim: int) -> None:
    """Sizes in bytes from which glibc asks the system for memory, and gives it back."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc has it, others need it less
        mallopt(M_MMAP_THRESHOLD, mmap)
        mallopt(M_TRIM_THRESHOLD, trim)
