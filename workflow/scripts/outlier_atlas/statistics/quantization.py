"""What rounding a tile's values to a format of few bits takes from them.

A tensor is a tile: the tokens of one sequence within one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from outlier_atlas.statistics.codes import Float64
from outlier_atlas.statistics.summary import Place

ERRORS_VERSION = 2
"""Raised when a change to the code changes a bit of the errors: all of them are then recomputed."""

KEPT = (True, False)
"""Whether outlier channels are quantized with the others, or left as they are: then their error is
0, and they are part of the signal and of the number of values all the same."""


@dataclass(frozen=True)
class QuantizationSummary:
    """Errors of a tile. Tokens with values that are not finite are left out.

    Attributes:
        sequence, start, tokens: its `Place`.
        outlier_channels: channels with |x| >= the threshold.
        values, squares: of all channels the number of values, and the sum of their squares.
        errors, square_errors: (format x with and without outlier channels quantized,): sums of |e|
            and e^2.
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
    values_TC: torch.Tensor,
    place: Place,
    threshold: float,
    kept: NDArray[np.bool_] | None = None,
) -> QuantizationSummary:
    """The errors of every format in a tile.

    Args:
        values_TC: (token, channel), on any device.
        place: where the tile is.
        threshold: a channel is an outlier channel where |x| >= this, in this tile.
        kept: (token,): the tokens that count; None where all do.
    """
    # numba takes a while to import, and those who read summaries need none of it.
    from outlier_atlas.statistics.compiled_quantization import errors, maxima

    x = values_TC.cpu().float().contiguous().numpy()
    tokens, by_channel = maxima(x, np.ones(len(x), np.bool_) if kept is None else kept)
    outliers = by_channel >= threshold
    every = errors(x, tokens, by_channel, np.ones_like(outliers))
    others = errors(x, tokens, by_channel, ~outliers) if outliers.any() else every
    absolute, square = np.stack([every[1], others[1]], axis=-1)
    return QuantizationSummary(
        place.sequence,
        place.start,
        place.tokens,
        int(outliers.sum()),
        len(tokens) * outliers.size,
        every[0],
        absolute.ravel(),
        square.ravel(),
    )
