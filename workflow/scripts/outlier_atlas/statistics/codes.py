"""16-bit codes of magnitudes, which have the order of the magnitudes and are counted in histograms.

A code has the eight exponent bits of float32 and eight bits of its mantissa. bfloat16 has seven
mantissa bits and is represented exactly. Other values are rounded, normal numbers with a relative
error of at most 2^-9.
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
"""Code of values that are not finite, which no magnitude has."""


def magnitude_codes(magnitudes: Float32) -> NDArray[np.uint16]:
    """Return the code of each magnitude, rounded to nearest, ties to even.

    Magnitudes that round to a number above the largest code become infinite. Adding one half before
    the shift carries from the mantissa into the exponent, as rounding does.

    Args:
        magnitudes: magnitudes, not negative and not NaN.
    """
    bits = np.ascontiguousarray(magnitudes).view(np.uint32)
    rounded = (bits + np.uint32(0x3FFF) + ((bits >> 15) & 1)) >> 15
    return rounded.astype(np.uint16)


def from_code(code: int) -> float:
    """Return the magnitude that a code stands for."""
    return float(np.array([code << 15], np.uint32).view(np.float32)[0])


def bits_of_code(code: int) -> tuple[int, int]:
    """Return the float32 bits of the magnitudes with a code, as a range [first, stop).

    The midpoint between two codes is rounded to the even code. The range contains only finite
    magnitudes.
    """

    def least(code: int) -> int:
        return min(max((code << 15) - 0x4000 + (code & 1), 0), INFINITE_BITS)

    return least(code), least(code + 1)


def place_of(codes: Int64, counts: Int64, quantile: float) -> tuple[int, int]:
    """Return the code at a quantile of a histogram, and the value's rank within this code."""
    cumulative = np.cumsum(counts)
    rank = int(quantile * (int(cumulative[-1]) - 1))
    index = int(np.searchsorted(cumulative, rank, side="right"))
    return int(codes[index]), rank - int(cumulative[index] - counts[index])


def lower_quantile(codes: Int64, counts: Int64, quantile: float) -> int:
    """Return the code at a quantile of a histogram: that of rank floor(quantile x (n - 1)).

    At 0.5 it is the code of the lower of the two middle values, as in `torch.median`.

    Args:
        codes: codes, ascending.
        counts: count of each code; at least one is above zero.
        quantile: from 0 to 1.
    """
    return place_of(codes, counts, quantile)[0]
