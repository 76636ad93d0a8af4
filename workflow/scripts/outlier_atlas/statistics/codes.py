"""bfloat16 codes: of non-negative values they sort as the values do, and count as a histogram."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

CODES = 2**15
"""Number of bfloat16 codes of non-negative numbers."""


def bfloat16_codes(values: Float32) -> NDArray[np.uint16]:
    """The bfloat16 code of each value, rounded to nearest even.

    For finite non-negative values codes sort as values do, and adding the half before the shift
    cannot leave them: what is above the largest bfloat16 becomes the code of infinity.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return rounded.astype(np.uint16)


def from_code(code: int) -> float:
    """The value of a bfloat16 code."""
    return float(np.array([code << 16], np.uint32).view(np.float32)[0])


def lower_quantile(codes: Int64, counts: Int64, quantile: float) -> int:
    """The code at a quantile of a histogram: the value of rank floor(quantile x (n - 1)).

    At 0.5 it is the lower of the two middle values, as `torch.median` has it.

    Args:
        codes: ascending in the order of their values.
        counts: how often each occurs; at least one is above zero.
    """
    cumulative = np.cumsum(counts)
    rank = int(quantile * (int(cumulative[-1]) - 1))
    return int(codes[np.searchsorted(cumulative, rank, side="right")])
