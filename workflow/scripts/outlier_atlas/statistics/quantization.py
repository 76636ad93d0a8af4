"""What rounding a tile's values to a format of few bits takes from them.

A tensor is a tile: the tokens of one sequence within one chunk. Every format is symmetric, and
rounds to the nearest of its values, ties to even.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from outlier_atlas.statistics.codes import Float64, Int64
from outlier_atlas.statistics.summary import Place

E4M3_MAX, E4M3_EMAX = 448.0, 8
E2M1_MAX, E2M1_EMAX = 6.0, 2


def int8(x_TC: torch.Tensor, axis: int | None) -> torch.Tensor:
    """INT8 with scale max|x| / 127, of the tensor (None), each token (1) or each channel (0)."""
    scale = _over(_largest(x_TC, axis), 127)
    return (x_TC / scale).round().clamp(-127, 127) * scale


def fp8(x_TC: torch.Tensor) -> torch.Tensor:
    """FP8 e4m3 with scale max|x| / 448 of the tensor."""
    scale = _over(_largest(x_TC, None), E4M3_MAX)
    return _e4m3(x_TC / scale) * scale


def mxfp8(x_TC: torch.Tensor) -> torch.Tensor:
    """MXFP8 (OCP Microscaling Formats v1.0, 6.3): e4m3, one power of two for 32 channels."""
    return _microscaled(x_TC, _e4m3, E4M3_EMAX)


def mxfp4(x_TC: torch.Tensor) -> torch.Tensor:
    """MXFP4 (OCP Microscaling Formats v1.0, 6.3): e2m1, one power of two for 32 channels."""
    return _microscaled(x_TC, _e2m1, E2M1_EMAX)


def nvfp4(x_TC: torch.Tensor) -> torch.Tensor:
    """NVFP4: e2m1, an e4m3 scale for 16 channels, and a float32 scale max|x| / (448 x 6) of the
    tensor (NVIDIA 2025, arXiv 2509.25149, appendix C)."""
    whole = _over(_largest(x_TC, None), E4M3_MAX * E2M1_MAX)
    blocks = _blocks(x_TC, 16)
    scale = _e4m3(blocks.abs().amax(2, keepdim=True) / E2M1_MAX / whole) * whole
    rounded = _e2m1(blocks / torch.where(scale > 0, scale, 1)) * scale
    return rounded.flatten(1)[:, : x_TC.shape[1]]


FORMATS: dict[tuple[str, str], Callable[[torch.Tensor], torch.Tensor]] = {
    ("int8", "tensor"): lambda x: int8(x, None),
    ("int8", "token"): lambda x: int8(x, 1),
    ("int8", "channel"): lambda x: int8(x, 0),
    ("fp8_e4m3", "tensor"): fp8,
    ("mxfp8", "block of 32"): mxfp8,
    ("mxfp4", "block of 32"): mxfp4,
    ("nvfp4", "block of 16"): nvfp4,
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
    e = quantize(x).double() - x.double()
    return _sum(e.abs()), _sum(e.square_())


def _sum(values: torch.Tensor) -> float:
    return float(values.sum(1).sum())


def _largest(x: torch.Tensor, axis: int | None) -> torch.Tensor:
    return x.abs().amax() if axis is None else x.abs().amax(axis, keepdim=True)


def _over(largest: torch.Tensor, divisor: float) -> torch.Tensor:
    """A scale; 1 where it would be 0."""
    scale = largest / divisor
    return torch.where(scale > 0, scale, 1)


def _e4m3(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float()


def _e2m1(x: torch.Tensor) -> torch.Tensor:
    """Nearest of 0, 0.5, 1, 1.5, 2, 3, 4 and 6 with x's sign; 6 beyond."""
    a = x.abs()
    step = torch.where(a < 2, 0.5, torch.where(a < 4, 1.0, 2.0))
    return ((a / step).round() * step).clamp(max=E2M1_MAX).copysign(x)


def _microscaled(
    x: torch.Tensor, element: Callable[[torch.Tensor], torch.Tensor], emax: int
) -> torch.Tensor:
    blocks = _blocks(x, 32)
    # floor(log2(m)), exactly: m = f x 2^e with 0.5 <= f < 1.
    exponent = torch.frexp(blocks.abs().amax(2, keepdim=True)).exponent - 1 - emax
    exponent = exponent.clamp(-127, 127)
    rounded = torch.ldexp(
        element(torch.ldexp(blocks.double(), -exponent).float()).double(), exponent
    )
    return rounded.float().flatten(1)[:, : x.shape[1]]


def _blocks(x: torch.Tensor, size: int) -> torch.Tensor:
    """(token, block, channel): the last block is filled up with zeros."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % size))
    return padded.reshape(len(x), -1, size)
