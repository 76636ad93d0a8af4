"""The results of one pass over a tile; `compiled.py` computes them on the host, `on_device.py`
elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.statistics.codes import Float32, Float64, Int32, Int64

TOP = 3
"""Number of largest values that are kept of a tile."""


@dataclass(frozen=True)
class OnePass:
    """The results of one pass over a tile; see `Summary` for the attributes that are not listed.

    Attributes:
        channel_row: (channel,): row of the largest |x|, the first of equals; -1 if none is finite.
        codes_are_exact: whether every |x| equals the number that its code stands for.
        high_row: (exceedance,): rows with |x| >= floor, ordered by row and channel.
    """

    nan: int
    infinite: int
    magnitudes: float
    top: Float32
    codes: NDArray[np.uint16]
    code_counts: Int64
    codes_are_exact: bool
    channel_value: Float32
    channel_row: Int32
    channel_count: Int64
    channel_mean: Float64
    channel_m2: Float64
    channel_m3: Float64
    channel_m4: Float64
    token_value: Float32
    token_channel: Int32
    token_square: Float64
    token_median: Float32
    token_kurtosis: Float64
    high_row: Int32
    high_channel: Int32
    high_value: Float32
