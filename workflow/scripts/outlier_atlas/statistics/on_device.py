"""The pass over a tile with torch operations on the tile's device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from outlier_atlas.statistics.codes import CODES, Float32, Float64, Int32, Int64
from outlier_atlas.statistics.one_pass import TOP, OnePass

LOW_BITS = 0x7FFF
"""The bits of a magnitude that rounding to a code removes."""


def one_pass(x: torch.Tensor, floor: float) -> OnePass:
    """Return the results of the pass over a tile.

    Args:
        x: (token, channel), float32, contiguous in memory.
        floor: least |x| of an exceedance, see `Summary.floor`.
    """
    values = Values.of(x)
    a = values.magnitudes()
    token_value, token_channel = values.largest(a, 1)
    channel_value, channel_row = values.largest(a, 0)
    doubles = values.doubles()
    token_square, token_kurtosis = _token_moments(values, doubles)
    n, mean, m2, m3, m4 = _channel_powers(values, doubles)
    counts = _counts(a)
    codes = np.flatnonzero(counts)
    high = (a >= floor).nonzero()
    high_row, high_channel = high.to(torch.int32).T.cpu().numpy()
    return OnePass(
        nan=int(x.isnan().sum()),
        infinite=int(x.isinf().sum()),
        magnitudes=float(doubles.abs().sum(1).sum()),
        top=_top(a),
        codes=codes.astype(np.uint16),
        code_counts=counts[codes],
        codes_are_exact=not bool((a[a >= 0].view(torch.int32) & LOW_BITS).any()),
        channel_value=channel_value,
        channel_row=channel_row,
        channel_count=n.astype(np.int64),
        channel_mean=mean,
        channel_m2=m2,
        channel_m3=m3,
        channel_m4=m4,
        token_value=token_value,
        token_channel=token_channel,
        token_square=token_square,
        token_median=_lower_medians(a, values.finite),
        token_kurtosis=token_kurtosis,
        high_row=high_row,
        high_channel=high_channel,
        high_value=_numpy(x[high[:, 0], high[:, 1]]),
    )


@dataclass(frozen=True)
class Values:
    """The values of a tile.

    Attributes:
        x: (token, channel), float32.
        finite: (token, channel): whether the value is finite; None if all values are.
    """

    x: torch.Tensor
    finite: torch.Tensor | None

    @classmethod
    def of(cls, x: torch.Tensor) -> Values:
        """Create from values that may be NaN or infinite."""
        finite = x.isfinite()
        return cls(x, None if bool(finite.all()) else finite)

    def magnitudes(self) -> torch.Tensor:
        """Return |x|, with -1 for values that are not finite."""
        return self._masked(self.x.abs(), -1)

    def doubles(self) -> torch.Tensor:
        """Return the values in float64, with 0 for values that are not finite."""
        return self._masked(self.x.double(), 0)

    def distances(self, doubles: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Return `doubles` minus the mean, with 0 for values that are not finite."""
        return self._masked(doubles - mean, 0)

    def number(self, axis: int) -> torch.Tensor:
        """Return the number of finite values along an axis, in float64."""
        if self.finite is None:
            size = self.x.shape[axis]
            return self.x.new_full((self.x.shape[1 - axis],), size, dtype=torch.float64)
        return self.finite.sum(axis, dtype=torch.float64)

    def largest(self, a: torch.Tensor, axis: int) -> tuple[Float32, Int32]:
        """Return the values largest in |x| along an axis, with their sign, and their indices.

        The index is that of the first of equals. Without a finite value they are NaN and -1.
        """
        if not a.shape[axis]:
            size = a.shape[1 - axis]
            return np.full(size, np.nan, np.float32), np.full(size, -1, np.int32)
        index = a.argmax(axis)
        values = _numpy(self.x.gather(axis, index.unsqueeze(axis)).squeeze(axis))
        finite = np.isfinite(values)
        return (
            np.where(finite, values, np.float32(np.nan)),
            np.where(finite, _numpy(index), -1).astype(np.int32),
        )

    def _masked(self, values: torch.Tensor, value: float) -> torch.Tensor:
        return values if self.finite is None else values.masked_fill_(~self.finite, value)


def _numpy(values: torch.Tensor) -> Any:
    return values.cpu().numpy()


def _top(a: torch.Tensor) -> Float32:
    """Return the `TOP` largest finite magnitudes, descending."""
    largest: Float32 = _numpy(a.flatten().topk(min(TOP, a.numel())).values)
    return largest[largest >= 0]


def code_counts(x: torch.Tensor) -> Int64:
    """Return the count of each code among the finite values of a float32 tensor, (CODES,)."""
    return _counts(Values.of(x).magnitudes())


def bits_within(x: torch.Tensor, first: int, stop: int) -> Int32:
    """Return the bits of |x| of a float32 tensor that are in [first, stop)."""
    bits = x.abs().view(torch.int32)
    within: Int32 = _numpy(bits[(bits >= first) & (bits < stop)])
    return within


def _counts(a: torch.Tensor) -> Int64:
    """Return the count of each code, (CODES,); see `codes.magnitude_codes`."""
    bits = a[a >= 0].view(torch.int32)
    codes = bits >> 15
    codes.bitwise_and_(1).add_(bits).add_(0x3FFF).bitwise_right_shift_(15)
    counts: Int64 = _numpy(torch.bincount(codes, minlength=CODES))
    return counts


def _lower_medians(a: torch.Tensor, finite: torch.Tensor | None) -> Float32:
    """Return each token's median of |x| over channels, the lower of the two middle ones, (token,).

    The median of no finite values is NaN.
    """
    if finite is None:
        medians = a.kthvalue((a.shape[1] + 1) // 2, 1).values
    else:
        counts = finite.sum(1)
        ordered = a.masked_fill(~finite, torch.inf).sort(1).values
        index = ((counts - 1) // 2).clamp(min=0).unsqueeze(1)
        medians = ordered.gather(1, index).squeeze(1).masked_fill(counts == 0, torch.nan)
    result: Float32 = _numpy(medians)
    return result


def _token_moments(values: Values, doubles: torch.Tensor) -> tuple[Float64, Float64]:
    """Return the sum of squares, and mu4 / sigma^4 over channels, (token,) each."""
    square = doubles.square().sum(1)  # not from the moments, so that equal norms stay equal
    n = values.number(1)
    mean = doubles.sum(1) / n.clamp(min=1)
    squares = values.distances(doubles, mean.unsqueeze(1)).square_()
    m2 = squares.sum(1)
    kurtosis = n * squares.square_().sum(1) / (m2 * m2)
    return _numpy(square), _numpy(kurtosis)


def _channel_powers(values: Values, doubles: torch.Tensor) -> Float64:
    """Return number, mean, and sums of the second to fourth powers of deviations, (5, channel)."""
    n = values.number(0)
    mean = doubles.sum(0) / n.clamp(min=1)
    d = values.distances(doubles, mean)
    squares = d.square()
    m2, m3 = squares.sum(0), d.mul_(squares).sum(0)
    m4 = squares.square_().sum(0)
    powers: Float64 = _numpy(torch.stack([n, mean, m2, m3, m4]))
    return powers
