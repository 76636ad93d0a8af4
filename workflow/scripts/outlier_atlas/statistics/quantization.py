"""Errors of quantizing the values of a tile to low-bit formats.

The scale of a tensor covers one tile: the tokens of one sequence within one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.statistics.codes import Float64
from outlier_atlas.statistics.summary import TileRange, Values, host_values

ERRORS_VERSION = 2
"""Version of the errors; it is raised by a change that alters a bit of them, to recompute all."""

OUTLIERS_QUANTIZED = (True, False)
"""Whether outlier channels are quantized with the others.

Channels that are not quantized have an error of 0. They are part of the signal and of the number
of values in both cases.
"""


@dataclass(frozen=True)
class QuantizationSummary:
    """Quantization errors of a tile; tokens with non-finite values are excluded.

    Attributes:
        sequence, start, tokens: the `TileRange` of the tile.
        outlier_channels: number of channels with |x| >= the threshold.
        values, squares: number of values in all channels, and the sum of their squares.
        errors, square_errors: (format x `OUTLIERS_QUANTIZED`,): sums of |e| and of e^2.
    """

    sequence: int
    start: int
    tokens: int
    outlier_channels: int
    values: int
    squares: float
    errors: Float64
    square_errors: Float64


def summarize_quantization(
    values_TC: Values,
    tile: TileRange,
    threshold: float,
    included: NDArray[np.bool_] | None = None,
) -> QuantizationSummary:
    """Return the errors of every format in a tile.

    Args:
        values_TC: (token, channel), on any device.
        tile: the tokens of the tile.
        threshold: least |x| in this tile of an outlier channel.
        included: (token,): whether the token is included; None includes all tokens.
    """
    # numba is slow to import, and is not needed to read summaries.
    from outlier_atlas.statistics.compiled_quantization import errors, maxima

    x = host_values(values_TC)
    tokens, by_channel = maxima(x, np.ones(len(x), np.bool_) if included is None else included)
    outliers = by_channel >= threshold
    all_channels = errors(x, tokens, by_channel, np.ones_like(outliers))
    no_outliers = errors(x, tokens, by_channel, ~outliers) if outliers.any() else all_channels
    absolute, square = np.stack([all_channels[1], no_outliers[1]], axis=-1)
    return QuantizationSummary(
        tile.sequence,
        tile.start,
        tile.tokens,
        int(outliers.sum()),
        len(tokens) * outliers.size,
        all_channels[0],
        absolute.ravel(),
        square.ravel(),
    )
