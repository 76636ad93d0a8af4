"""What rounding a tile's values to a format of few bits takes from them.

A tensor is a tile: the tokens of one sequence within one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from outlier_atlas.statistics.codes import Float64, Int64
from outlier_atlas.statistics.formats import (
    exact_errors,
    fp8_e4m3,
    int8,
    largest,
    mxfp4,
    mxfp8,
    nvfp4,
)
from outlier_atlas.statistics.summary import Place

FORMATS: dict[tuple[str, str], Callable[[torch.Tensor], torch.Tensor]] = {
    ("int8", "tensor"): lambda x: int8(x, largest(x, "tensor")),
    ("int8", "token"): lambda x: int8(x, largest(x, "row")),
    ("int8", "channel"): lambda x: int8(x, largest(x, "column")),
    ("fp8_e4m3", "tensor"): lambda x: fp8_e4m3(x, largest(x, "tensor")),
    ("mxfp8", "block of 32"): mxfp8,
    ("mxfp4", "block of 32"): mxfp4,
    ("nvfp4", "block of 16"): lambda x: nvfp4(x, largest(x, "tensor")),
}
"""By name and by what has a scale of its own."""

KEPT = (True, False)
"""Whether outlier channels are quantized with the others, or left as they are."""


@dataclass(frozen=True)
class QuantizationSummary:
    """Errors of a tile. Tokens with values that are not finite are left out.

    Attributes:
        sequence, start, tokens: its `Place`.
        outlier_channels: channels with |x| >= the threshold.
        values, squares: (with and without outlier channels,): of the values that are quantized
            their number, and the sum of their squares.
        errors, square_errors: (format x with and without,): sums of |e| and e^2.
    """

    sequence: int
    start: int
    tokens: int
    outlier_channels: int
    values: Int64
    squares: Float64
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
    x = values_TC.float()
    there = x.isfinite().all(1)
    if kept is not None:
        there &= torch.from_numpy(kept).to(x.device)
    x = x[there]
    outliers = (x.abs() >= threshold).any(0)
    channels = [x.shape[1], int((~outliers).sum())]
    # In their places, so that blocks stay what they are; a 0 has no error in any format.
    parts = [x, x.masked_fill(outliers, 0)]
    sums = [_errors(part, quantize) for quantize in FORMATS.values() for part in parts]
    return QuantizationSummary(
        place.sequence,
        place.start,
        place.tokens,
        int(outliers.sum()),
        np.array([len(x) * count for count in channels]),
        np.array([_sum(part.double().square()) for part in parts]),
        np.array([errors for errors, _ in sums]),
        np.array([squares for _, squares in sums]),
    )


def _errors(
    x: torch.Tensor, quantize: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[float, float]:
    if not x.numel():
        return 0.0, 0.0
    e = exact_errors(x, quantize(x))
    return _sum(e.abs()), _sum(e.square_())


def _sum(values: torch.Tensor) -> float:
    return float(values.sum(1).sum())
