"""The exact median of a sequence's |x|, which codes give only to a relative 2^-9.

The histogram of codes determines the code of the median, and how many values precede it. A second
pass then needs only the few values with this code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from outlier_atlas.statistics.codes import CODES, Float32, Int32, Int64, bits_of_code, place_of
from outlier_atlas.statistics.summary import Summary, Values, widened

if TYPE_CHECKING:
    import torch


def needs_median(summary: Summary) -> bool:
    """Return whether a decision may depend on a median that the codes do not give exactly.

    Only exceedances are compared with the median.
    """
    return len(summary.high_token) > 0 and not summary.codes_are_exact


def sequence_median(parts: Sequence[Values]) -> float:
    """Return the median of |x| over all finite values, the lower of the two middle ones.

    The median of no values is NaN.

    Args:
        parts: (token, channel) each, on any device, in the dtype of the forward pass. The memory
            needed is a few times that of one part in float32.
    """
    counts = np.zeros(CODES, np.int64)
    for part in parts:
        counts += _code_counts(widened(part))
    codes = np.flatnonzero(counts)
    return median_of(codes, counts[codes], parts)


def median_of(codes: Int64, counts: Int64, parts: Iterable[Values]) -> float:
    """Return the median of |x| over all finite values, given the histogram of their codes.

    Args:
        codes, counts: codes of the finite |x| of all parts, ascending, and their counts.
        parts: (token, channel) each, as in `sequence_median`.
    """
    if not len(codes):
        return float("nan")
    code, rank = place_of(codes, counts, 0.5)
    first, stop = bits_of_code(code)
    bits = np.concatenate([_bits_within(widened(part), first, stop) for part in parts])
    median: Float32 = np.partition(bits, rank)[rank : rank + 1].view(np.float32)
    return float(median[0])


def _code_counts(x: torch.Tensor | Float32) -> Int64:
    if isinstance(x, np.ndarray):
        from outlier_atlas.statistics import compiled

        return compiled.code_counts(x)
    from outlier_atlas.statistics import on_device

    return on_device.code_counts(x)


def _bits_within(x: torch.Tensor | Float32, first: int, stop: int) -> Int32:
    if isinstance(x, np.ndarray):
        from outlier_atlas.statistics import compiled

        return compiled.bits_within(x, np.int32(first), np.int32(stop))
    from outlier_atlas.statistics import on_device

    return on_device.bits_within(x, first, stop)
