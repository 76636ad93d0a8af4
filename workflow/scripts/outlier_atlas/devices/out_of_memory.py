"""Whether an error is one that less work at a time would not meet."""

from __future__ import annotations

import torch


def short_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short, on whatever device.

    Only CUDA has an exception of its own for it; MPS and the CPU's allocator say it in words.
    """
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in said for words in ("MPS backend out of memory", "can't allocate memory")
    )
