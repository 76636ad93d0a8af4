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
    AXES,
    Granularity,
    exact_errors,
    fp8_e4m3,
    int8,
    largest,
    mxfp4,
    mxfp8,
    nvfp4,
)
from outlier_atlas.statistics.summary import Place

Maxima = dict[Granularity, torch.Tensor]
"""The largest |x| of a whole tensor under each scale."""

FORMATS: dict[tuple[str, str], Callable[[torch.Tensor, Maxima], torch.Tensor]] = {
    ("int8", "tensor"): lambda x, maxima: int8(x, maxima["tensor"]),
    ("int8", "token"): lambda x, maxima: int8(x, maxima["row"]),
    ("int8", "channel"): lambda x, maxima: int8(x, maxima["column"]),
    ("fp8_e4m3", "tensor"): lambda x, maxima: fp8_e4m3(x, maxima["tensor"]),
    ("mxfp8", "block of 32"): lambda x, _: mxfp8(x),
    ("mxfp4", "block of 32"): lambda x, _: mxfp4(x),
    ("nvfp4", "block of 16"): lambda x, maxima: nvfp4(x, maxima["tensor"]),
}
"""By name and by what has a scale of its own."""

BLOCK = 2**18
"""Values that are rounded at a time: what is made of them stays in caches. New memory for the whole
tensor costs several times what is done in it."""

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
    quantized = _sums(x)
    kept_apart = _sums(x.masked_fill(outliers, 0)) if outliers.any() else quantized
    squares, errors, square_errors = np.stack([quantized, kept_apart], axis=-1)
    return QuantizationSummary(
        place.sequence,
        place.start,
        place.tokens,
        int(outliers.sum()),
        np.array([len(x) * count for count in channels]),
        squares[0],
        errors.ravel(),
        square_errors.ravel(),
    )


def _sums(x: torch.Tensor) -> Float64:
    """(3, format): the sum of x^2, the same for every format; of |e|; and of e^2."""
    sums = torch.zeros(3, len(FORMATS), len(x), dtype=torch.float64, device=x.device)
    if not x.numel():
        return np.zeros(sums.shape[:2])
    of_all: Maxima = {granularity: largest(x, granularity) for granularity in AXES}
    tokens = max(1, BLOCK // x.shape[1])
    for rows in (slice(start, start + tokens) for start in range(0, len(x), tokens)):
        block, maxima = x[rows], of_all | {"row": of_all["row"][rows]}
        sums[0, :, rows] = block.double().square_().sum(1)
        for at, quantize in enumerate(FORMATS.values()):
            e = exact_errors(block, quantize(block, maxima))
            sums[1, at, rows] = e.abs().sum(1)
            sums[2, at, rows] = e.square_().sum(1)
    made: Float64 = sums.sum(2).cpu().numpy()
    return made
