"""Conversion of host tensors to float32, without threads and without new memory."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray


class Float32:
    """Converter of tensors to float32, which reuses its memory for the next tensor.

    The conversion is exact. It widens bfloat16 by shifting bits in numpy. torch would start threads
    next to those of the forward pass, and new memory for each tensor costs as much as the
    conversion.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint32)

    def __call__(self, values: torch.Tensor) -> NDArray[np.float32]:
        """Return the values of a tensor; they are valid until the next call."""
        if values.dtype != torch.bfloat16:
            return values.float().numpy()
        codes = values.contiguous().view(torch.int16).numpy().view(np.uint16)
        if self._memory.size < codes.size:
            self._memory = np.empty(codes.size, np.uint32)
        wide = self._memory[: codes.size].reshape(codes.shape)
        np.left_shift(codes, np.uint32(16), out=wide, dtype=np.uint32)
        return wide.view(np.float32)
