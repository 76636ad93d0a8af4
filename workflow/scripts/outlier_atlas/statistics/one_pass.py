"""What one pass over a tile finds; `compiled.py` makes it on the host, `on_device.py` elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from outlier_atlas.statistics.codes import Float32, Float64, Int32, Int64

TOP = 3
"""The largest values that are kept of a tile."""


@dataclass(frozen=True)
class OnePass:
    """Rows are those of the tile; see `Summary` for the rest.

    Attributes:
        code_counts: (CODES,): how often each bfloat16 code of |x| occurs.
        channel_row: (channel,): where the largest is, the first of equals; -1 where none is finite.
        powers: (5, channel): number, mean, and sums of the second to fourth powers of the distances
            from the mean.
        high_row: (exceedance,): where |x| >= floor, by row and channel.
    """

    nan: int
    infinite: int
    magnitudes: float
    top: Float32
    code_counts: Int64
    channel_value: Float32
    channel_row: Int32
    powers: Float64
    token_value: Float32
    token_channel: Int32
    token_square: Float64
    token_median: Float32
    token_kurtosis: Float64
    high_row: Int32
    high_channel: Int32
    high_value: Float32
