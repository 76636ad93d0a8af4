"""The exact median of a sequence's |x|, where codes give it to a relative 2^-9 only.

Codes tell which of them the median has and how many values precede it. So one more look at the
values suffices, for those few that have this code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from outlier_atlas.statistics.codes import CODES, Float32, Int32, Int64, bits_of_code, place_of
from outlier_atlas.statistics.summary import Summary, on_host, widened


def needs_median(summary: Summary) -> bool:
    """Whether something may be decided by a sequence's median that codes do not give exactly.

    Only exceedances are compared with it.
    """
    return len(summary.high_token) > 0 and not summary.codes_are_exact


def sequence_median(parts: Sequence[torch.Tensor]) -> float:
    """Median of |x| over all finite values, the lower of the two middle ones; NaN of none.

    Args:
        parts: (token, channel) each, on any device, in the dtype that the model computed in. Memory
            is that of one part in float32, a few times over.
    """
    counts = np.zeros(CODES, np.int64)
    for part in parts:
        counts += _code_counts(widened(part))
    codes = np.flatnonzero(counts)
    return median_of(codes, counts[codes], parts)


def median_of(codes: Int64, counts: Int64, parts: Iterable[torch.Tensor]) -> float:
    """The same, given the histogram of all parts together.

    Args:
        codes, counts: codes of the finite |x|, ascending, and how often each occurs.
    """
    if not len(codes):
        return float("nan")
    code, rank = place_of(codes, counts, 0.5)
    first, stop = bits_of_code(code)
    of_code = np.concatenate([_bits_within(widened(part), first, stop) for part in parts])
    median: Float32 = np.partition(of_code, rank)[rank : rank + 1].view(np.float32)
    return float(median[0])


def _code_counts(x: torch.Tensor) -> Int64:
    if on_host(x):
        from outlier_atlas.statistics import compiled

        return compiled.code_counts(x.numpy())
    from outlier_atlas.statistics import on_device

    return on_device.code_counts(x)


def _bits_within(x: torch.Tensor, first: int, stop: int) -> Int32:
    if on_host(x):
        from outlier_atlas.statistics import compiled

        return compiled.bits_within(x.numpy(), np.int32(first), np.int32(stop))
    from outlier_atlas.statistics import on_device

    return on_device.bits_within(x, first, stop)
