"""Settings of glibc and oneDNN that return freed memory to the system and bound caches."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
"""Parameters of glibc's `mallopt`."""

KIB = 2**10
MIB = 2**20

KERNELS = "64"
"""Number of prepared matrix products to keep."""
CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Variables with the number of prepared matrix products that oneDNN and torch keep.

Both default to 1024.
"""


def few_kernels() -> None:
    """Bound the caches of prepared matrix products on the CPU.

    The experts of a mixture get other numbers of tokens in each batch, and each shape adds a
    prepared product. From 8 to 20 thousand tokens a small mixture gained 160 MiB, and kept growing.
    Call this before the first forward pass. Variables that the user has set are kept.
    """
    for variable in CACHES:
        os.environ.setdefault(variable, KERNELS)


@contextmanager
def bounded_malloc() -> Iterator[None]:
    """Make transformers convert one weight at a time, and glibc return freed memory, in the block.

    By default transformers converts weights in threads, far ahead of the thread that assembles
    them. Loading a float32 checkpoint of separate experts then takes twice the memory of its
    bfloat16 weights. glibc raises the size from which it returns memory when large pieces are
    freed, so the pieces of a fused tensor stay with the process. `benchmarks/memory.py` measures
    both.
    """
    previous = os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    _thresholds(mmap=128 * KIB, trim=128 * KIB)  # the initial values of glibc
    try:
        yield
    finally:
        # A forward pass allocates and frees the same sizes again and again. Allocating them from
        # the system costs a fifth of its time in page faults. glibc allows at most 32 MiB.
        _thresholds(mmap=32 * MIB, trim=64 * MIB)
        if previous is None:
            del os.environ["HF_DEACTIVATE_ASYNC_LOAD"]
        else:
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = previous


def _thresholds(mmap: int, trim: int) -> None:
    """Set the sizes in bytes from which glibc uses `mmap`, and returns memory to the system."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries than glibc have no mallopt
        mallopt(M_MMAP_THRESHOLD, mmap)
        mallopt(M_TRIM_THRESHOLD, trim)
