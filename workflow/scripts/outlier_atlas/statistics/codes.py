"""Codes of magnitudes, of 16 bits: they sort as the magnitudes do, and count as a histogram.

A code has the eight bits of float32's exponent, and eight of its mantissa. bfloat16 has seven of
mantissa and is held exactly; all else is rounded, by a relative 2^-9 at most (of normal numbers).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

CODES = 2**16
"""Number of codes."""

INFINITE_BITS = 0x7F800000
"""The float32 bits of infinity."""

NOT_FINITE = CODES - 1
"""A code that no magnitude has: it stands for what is left out."""


def magnitude_codes(magnitudes: Float32) -> NDArray[np.uint16]:
    """The code of each, rounded to nearest even; what is above the largest code is infinite.

    Adding the half before the shift carries from the mantissa into the exponent, as rounding does.

    Args:
        magnitudes: not negative, and not NaN.
    """
    bits = np.ascontiguousarray(magnitudes).view(np.uint32)
    rounded = (bits + np.uint32(0x3FFF) + ((bits >> 15) & 1)) >> 15
    return rounded.astype(np.uint16)


def from_code(code: int) -> float:
    """The magnitude that a code stands for."""
    return float(np.array([code << 15], np.uint32).view(np.float32)[0])


def bits_of_code(code: int) -> tuple[int, int]:
    """The float32 bits of the least finite magnitude that has a code, and of the least beyond it.

    Between two codes the middle is rounded to the even one.
    """

    def least(of: int) -> int:
        return min(max((of << 15) - 0x4000 + (of & 1), 0), INFINITE_BITS)

    return least(code), least(code + 1)


def place_of(codes: Int64, counts: Int64, quantile: float) -> tuple[int, int]:
    """The code at a quantile of a histogram, and the value's rank among those with this code."""
    cumulative = np.cumsum(counts)
    rank = int(quantile * (int(cumulative[-1]) - 1))
    index = int(np.searchsorted(cumulative, rank, side="right"))
    return int(codes[index]), rank - int(cumulative[index] - counts[index])


def lower_quantile(codes: Int64, counts: Int64, quantile: float) -> int:
    """The code at a quantile of a histogram: the value of rank floor(quantile x (n - 1)).

    At 0.5 it is the lower of the two middle values, as `torch.median` has it.

    Args:
        codes: ascending in the order of their values.
        counts: how often each occurs; at least one is above zero.
    """
    return place_of(codes, counts, quantile)[0]
