"""Recognition of errors for lack of memory, which a smaller batch may avoid."""

from __future__ import annotations

import torch


def short_of_memory(error: BaseException) -> bool:
    """Return whether an error reports a lack of memory on any device.

    Only CUDA has its own exception type. MPS and the CPU's allocator report it in the message.
    """
    message = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in message for words in ("MPS backend out of memory", "can't allocate memory")
    )
