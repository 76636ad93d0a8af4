"""Statistics of a weight matrix: largest values, kurtosis and quantization errors.

The matrix is read twice, some rows at a time, because scales need its maxima and central moments
its mean. Values that are not finite are counted, and excluded from everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outlier_atlas.phases import COMPUTE, phase
from outlier_atlas.statistics import formats
from outlier_atlas.statistics.formats import NO_ERROR, ErrorSums

Take = Callable[[int, int], Tensor]
"""Function that returns a new copy of rows [start, stop) of a matrix, (row, column) in float32."""

RoundTrip = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function that quantizes and dequantizes values.

Its arguments are the values, (row, column), the largest |w| of each row, (row, 1), and the largest
|w| of the matrix, (1, 1).
"""

ROUND_TRIPS: dict[tuple[str, str], RoundTrip] = {
    ("int8", "tensor"): lambda values, _, whole: formats.int8(values, whole),
    ("int8", "output channel"): lambda values, rows, _: formats.int8(values, rows),
    ("fp8_e4m3", "tensor"): lambda values, _, whole: formats.fp8_e4m3(values, whole),
    ("fp8_e4m3", "output channel"): lambda values, rows, _: formats.fp8_e4m3(values, rows),
    ("mxfp8", "block of 32"): lambda values, _, __: formats.mxfp8(values),
    ("mxfp4", "block of 32"): lambda values, _, __: formats.mxfp4(values),
    ("nvfp4", "block of 16"): lambda values, _, whole: formats.nvfp4(values, whole),
}
"""Formats, by their name and by the values that share a scale."""

BLOCK = 2**18
"""Values that are processed at a time: few enough for a core's cache, and enough to make the
overhead of the interpreter small."""


@dataclass(frozen=True)
class WeightStatistics:
    """Statistics of one matrix (output channel, input channel).

    Attributes:
        value: the value largest in |w|, with its sign; among equals the first by row and column;
            NaN if no value is finite.
        row, column: output and input channel of that value.
        mean: mean over all finite values.
        kurtosis: mu4 / sigma^4 over all finite values (Bondarenko et al. 2023): 3 for a Gaussian.
            NaN if all values are equal.
        not_finite: number of values that are NaN or infinite.
        input_maxima: (column,): the value largest in |w| of each input channel, with its sign.
        output_maxima: (row,): the value largest in |w| of each output channel, with its sign.
        errors: error sums of each of `ROUND_TRIPS`.
    """

    value: float
    row: int
    column: int
    mean: float
    kurtosis: float
    not_finite: int
    input_maxima: NDArray[np.float32]
    output_maxima: NDArray[np.float32]
    errors: dict[tuple[str, str], ErrorSums]


@phase(COMPUTE)
def weight_statistics(rows: int, columns: int, take: Take) -> WeightStatistics:
    """Return the statistics of a matrix, computed in float64 except for the rounding of formats.

    Args:
        rows, columns: shape of the matrix.
        take: function that returns some of its rows.
    """
    maxima = _Maxima.of(rows, columns, take)
    count = rows * columns - maxima.not_finite
    largest = maxima.output.abs()
    row = int(largest.argmax())
    values, _ = _finite(take(row, row + 1))
    column = int(values[0].abs().argmax())
    moments = _Moments(maxima.total / count if count else math.nan)
    errors = dict.fromkeys(ROUND_TRIPS, NO_ERROR)
    for start, stop in _parts(rows, columns):
        values_of_part, absent = _finite(take(start, stop))
        squares = moments.update(values_of_part, absent)
        scales = largest[start:stop, None], largest[row].reshape(1, 1)
        for name, round_trip in ROUND_TRIPS.items():
            returned = round_trip(values_of_part, *scales)
            errors[name] += formats.error_sums(values_of_part, returned, squares)
    return WeightStatistics(
        value=float(values[0, column]) if count else math.nan,
        row=row,
        column=column,
        mean=moments.mean,
        kurtosis=moments.kurtosis(count),
        not_finite=maxima.not_finite,
        input_maxima=_signed(maxima.highest, maxima.lowest).numpy(),
        output_maxima=maxima.output.numpy(),
        errors={name: replace(sums, values=count) for name, sums in errors.items()},
    )


@dataclass
class _Maxima:
    """The results of the first pass that the second pass needs.

    Attributes:
        highest, lowest: (column,): the largest and the smallest value of each column.
        output: (row,): the value largest in |w| of each row, with its sign.
        total: sum of all finite values.
        not_finite: number of values that are NaN or infinite.
    """

    highest: Tensor
    lowest: Tensor
    output: Tensor
    total: float = 0.0
    not_finite: int = 0

    @classmethod
    def of(cls, rows: int, columns: int, take: Take) -> _Maxima:
        """Compute the maxima of a whole matrix."""
        minus_infinity = torch.full((columns,), -math.inf)
        # `output` is one tensor, filled part by part. A small tensor for each part would lie
        # between the parts and fragment the memory (394 MiB more for 134 million values).
        maxima = cls(minus_infinity, -minus_infinity, torch.empty(rows))
        for start, stop in _parts(rows, columns):
            values, absent = _finite(take(start, stop))
            torch.maximum(maxima.highest, values.amax(0), out=maxima.highest)
            torch.minimum(maxima.lowest, values.amin(0), out=maxima.lowest)
            maxima.output[start:stop] = _signed(values.amax(1), values.amin(1))
            maxima.total += values.sum(dtype=torch.float64).item()
            maxima.not_finite += absent
        return maxima


@dataclass
class _Moments:
    """An accumulator of central moments around a known mean, in float64."""

    mean: float
    second: float = 0.0
    fourth: float = 0.0

    def update(self, values: Tensor, absent: int) -> float:
        """Add values, of which `absent` are zeros that replace non-finite ones; return sum w^2."""
        exact = values.double().flatten()
        squares = exact.dot(exact).item()
        deviations = exact.sub_(self.mean).square_()
        self.second += deviations.sum().item() - absent * self.mean**2
        self.fourth += deviations.dot(deviations).item() - absent * self.mean**4
        return squares

    def kurtosis(self, count: int) -> float:
        """Return mu4 / sigma^4 of `count` values; NaN if all are equal."""
        return count * self.fourth / self.second**2 if self.second > 0 else math.nan


def _parts(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    height = max(1, BLOCK // columns)
    return ((start, min(start + height, rows)) for start in range(0, rows, height))


def _finite(values: Tensor) -> tuple[Tensor, int]:
    """Return the values with non-finite ones replaced by zeros, and the number of these."""
    if math.isfinite(values.sum(dtype=torch.float64)):
        return values, 0
    absent = ~values.isfinite()
    return values.masked_fill_(absent, 0), int(absent.sum())


def _signed(highest: Tensor, lowest: Tensor) -> Tensor:
    return torch.where(highest >= -lowest, highest, lowest)
