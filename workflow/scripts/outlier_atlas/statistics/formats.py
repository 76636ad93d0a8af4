"""Number formats of quantization: round trips of quantizing and dequantizing a tensor.

Every function takes (row, channel) values in float32, computes in float32 on their device, and
returns the dequantized values. Rounding is to nearest, ties to even. Values beyond the largest
number of a format become that number, with their sign. A scale of zero returns zeros. Values must
be finite.

INT8 and FP8 take the largest |x| under each scale in a shape that broadcasts (see `largest`): one
scale for the tensor, for each row (a token or an output channel) or for each column. The block
formats have a scale for each block along the last axis, over which a matrix product sums; the last
block of a row may be shorter.

Sources: FP8 e4m3 and e2m1 as in OCP's OFP8 and MX v1.0 specifications, and MX v1.0, section 6.3,
for its scales; NVFP4 as in Nvidia 2025, arXiv 2509.25149, appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from outlier_atlas.statistics.elements import E2M1, E4M3, INT8, Element

Granularity = Literal["tensor", "row", "column"]
AXES: dict[Granularity, tuple[int, ...]] = {"tensor": (0, 1), "row": (1,), "column": (0,)}


def largest(values: Tensor, granularity: Granularity) -> Tensor:
    """Return the largest |x| under each scale: (1, 1), (row, 1) or (1, channel)."""
    return values.abs().amax(AXES[granularity], keepdim=True)


def int8(values: Tensor, maxima: Tensor) -> Tensor:
    """Round to symmetric INT8 with scale = maximum / 127."""
    limit = INT8.largest
    return _scaled(values, maxima / limit, lambda x: x.round_().clamp_(-limit, limit))


def fp8_e4m3(values: Tensor, maxima: Tensor) -> Tensor:
    """Round to FP8 e4m3 (without infinities) with scale = maximum / 448."""
    return _scaled(values, maxima / E4M3.largest, E4M3.round_)


def mxfp8(values: Tensor) -> Tensor:
    """Round to MXFP8: blocks of 32 e4m3 elements, E8M0 scale 2^(floor(log2 maximum) - 8)."""
    return _mx(values, E4M3)


def mxfp4(values: Tensor) -> Tensor:
    """Round to MXFP4: blocks of 32 e2m1 elements, E8M0 scale 2^(floor(log2 maximum) - 2)."""
    return _mx(values, E2M1)


def nvfp4(values: Tensor, maximum: Tensor) -> Tensor:
    """Round to NVFP4: blocks of 16 e2m1 elements with e4m3 scales, and a float32 tensor scale.

    The tensor's scale is its maximum / (6 x 448). The scale of a block is its maximum / 6, divided
    by the tensor's scale and rounded to e4m3. A block whose scale rounds to zero returns zeros.

    Args:
        values: (row, channel), the tensor or a part of it.
        maximum: the largest |x| of the whole tensor; (1, 1).
    """
    blocks = _blocks(values, 16)
    scale = maximum / (E2M1.largest * E4M3.largest)
    block_maxima = blocks.abs().amax(-1, keepdim=True)
    block_scales = _scaled(block_maxima / E2M1.largest, scale, E4M3.round_)
    return _unblocked(_scaled(blocks, block_scales, E2M1.round_), values)


@dataclass(frozen=True)
class ErrorSums:
    """Sums of the errors of a round trip; the sums of parts add up to those of the whole.

    Attributes:
        values: number of values.
        squares: sum of x^2.
        absolute_errors: sum of |e|, with e the dequantized value minus x.
        squared_errors: sum of e^2.
    """

    values: int
    squares: float
    absolute_errors: float
    squared_errors: float

    def __add__(self, other: ErrorSums) -> ErrorSums:
        return ErrorSums(
            self.values + other.values,
            self.squares + other.squares,
            self.absolute_errors + other.absolute_errors,
            self.squared_errors + other.squared_errors,
        )

    @property
    def rmse(self) -> float:
        """Root of the mean squared error; NaN without values."""
        return math.sqrt(self.squared_errors / self.values) if self.values else math.nan

    @property
    def mae(self) -> float:
        """Mean absolute error; NaN without values."""
        return self.absolute_errors / self.values if self.values else math.nan

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise ratio in dB, 10 log10(sum x^2 / sum e^2).

        It is infinite without an error, and NaN if all x are zero.
        """
        if not self.squared_errors:
            return math.inf if self.squares else math.nan
        return 10 * math.log10(self.squares / self.squared_errors)


NO_ERROR = ErrorSums(0, 0.0, 0.0, 0.0)


def exact_errors(values: Tensor, returned: Tensor) -> Tensor:
    """Return the dequantized values minus the values, in float64."""
    # The difference is exact in float32: the two are within a factor of two, or one is zero.
    return (returned - values).double()


def error_sums(values: Tensor, returned: Tensor, squares: float | None = None) -> ErrorSums:
    """Return the sums of the errors in float64.

    The last bits of the sums depend on the number of torch's threads.

    Args:
        values: the values.
        returned: the dequantized values.
        squares: sum of x^2 if it is known.
    """
    errors = exact_errors(values, returned).flatten()
    if squares is None:
        exact = values.double().flatten()
        squares = exact.dot(exact).item()
    squared = errors.dot(errors).item()
    return ErrorSums(values.numel(), squares, errors.abs_().sum().item(), squared)


def _scaled(values: Tensor, scales: Tensor, round_: Callable[[Tensor], Tensor]) -> Tensor:
    divisors = torch.where(scales > 0, scales, 1)
    return round_(values / divisors).mul_(scales)


def _mx(values: Tensor, element: Element) -> Tensor:
    blocks = _blocks(values, 32)
    maxima = blocks.abs().amax(-1, keepdim=True)
    # The exponent bits of a float32 are floor(log2) + 127. Those of subnormals are zero, but
    # subnormals are far below the smallest E8M0 scale, 2^-127.
    exponents = (maxima.view(torch.int32) >> 23) - 127 - element.exponent
    scales = torch.ldexp(torch.ones_like(maxima), exponents.clamp_(min=-127))
    return _unblocked(_scaled(blocks, scales, element.round_), values)


def _blocks(values: Tensor, size: int) -> Tensor:
    """Return the values as (row, block, element), the last block of a row padded with zeros."""
    missing = -values.shape[1] % size
    padded = functional.pad(values, (0, missing)) if missing else values
    return padded.view(len(values), -1, size)


def _unblocked(blocks: Tensor, values: Tensor) -> Tensor:
    return blocks.flatten(1)[:, : values.shape[1]]
