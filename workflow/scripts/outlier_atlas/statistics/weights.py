"""What is said of a weight matrix: its largest values, its kurtosis, and what formats do to it.

The matrix is gone through twice, some rows at a time: scales need its maxima, and central moments
its mean. What is not finite is counted, and left out of everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outlier_atlas.statistics import formats
from outlier_atlas.statistics.formats import NO_ERROR, ErrorSums

Take = Callable[[int, int], Tensor]
"""Gives rows `start` to `stop - 1` of a matrix, (row, column) in float32, newly made."""

RoundTrip = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Values, the largest |w| of each of their rows, (row, 1), and that of the matrix, (1, 1)."""

ROUND_TRIPS: dict[tuple[str, str], RoundTrip] = {
    ("int8", "tensor"): lambda values, _, whole: formats.int8(values, whole),
    ("int8", "output channel"): lambda values, rows, _: formats.int8(values, rows),
    ("fp8_e4m3", "tensor"): lambda values, _, whole: formats.fp8_e4m3(values, whole),
    ("fp8_e4m3", "output channel"): lambda values, rows, _: formats.fp8_e4m3(values, rows),
    ("mxfp8", "block of 32"): lambda values, _, __: formats.mxfp8(values),
    ("mxfp4", "block of 32"): lambda values, _, __: formats.mxfp4(values),
    ("nvfp4", "block of 16"): lambda values, _, whole: formats.nvfp4(values, whole),
}
"""Formats, by their name and what shares a scale."""

BLOCK = 2**18
"""Values that are worked on at a time: what they need stays in a core's cache, and the interpreter
is a small part of the time."""


@dataclass(frozen=True)
class WeightStatistics:
    """Of one matrix (output channel, input channel).

    Attributes:
        value: the largest in |w|, with its sign; the first by row and column of equals; NaN where
            nothing is finite.
        row, column: where it is: output and input channel.
        mean: over all values.
        kurtosis: mu4 / sigma^4 over all values (Bondarenko et al. 2023): 3 for a Gaussian. NaN
            where all values are equal.
        not_finite: how many values are NaN or infinite.
        input_maxima: of each input channel the value largest in |w|, with its sign; (column,).
        output_maxima: of each output channel, likewise; (row,).
        errors: of each of `ROUND_TRIPS`.
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


def weight_statistics(rows: int, columns: int, take: Take) -> WeightStatistics:
    """Go through a matrix, in float64 but for what the formats round.

    Args:
        take: gives some of its rows.
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
    """What the second pass needs of the first.

    Attributes:
        highest, lowest: of each column.
        output: of each row the value largest in |w|, with its sign.
        total: sum of all values.
    """

    highest: Tensor
    lowest: Tensor
    output: Tensor
    total: float = 0.0
    not_finite: int = 0

    @classmethod
    def of(cls, rows: int, columns: int, take: Take) -> _Maxima:
        """Of a whole matrix."""
        none = torch.full((columns,), -math.inf)
        # One tensor that is filled: a small one kept of each part would lie between the parts and
        # keep the allocator from taking their memory again (394 MiB more for 134 million values).
        found = cls(none, -none, torch.empty(rows))
        for start, stop in _parts(rows, columns):
            values, absent = _finite(take(start, stop))
            torch.maximum(found.highest, values.amax(0), out=found.highest)
            torch.minimum(found.lowest, values.amin(0), out=found.lowest)
            found.output[start:stop] = _signed(values.amax(1), values.amin(1))
            found.total += values.sum(dtype=torch.float64).item()
            found.not_finite += absent
        return found


@dataclass
class _Moments:
    """Central moments, given the mean; sums in float64."""

    mean: float
    second: float = 0.0
    fourth: float = 0.0

    def update(self, values: Tensor, absent: int) -> float:
        """Take some values, of which so many are zeros in place of nothing; gives sum w^2."""
        exact = values.double().flatten()
        squares = exact.dot(exact).item()
        deviations = exact.sub_(self.mean).square_()
        self.second += deviations.sum().item() - absent * self.mean**2
        self.fourth += deviations.dot(deviations).item() - absent * self.mean**4
        return squares

    def kurtosis(self, count: int) -> float:
        """mu4 / sigma^4."""
        return count * self.fourth / self.second**2 if self.second > 0 else math.nan


def _parts(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    height = max(1, BLOCK // columns)
    return ((start, min(start + height, rows)) for start in range(0, rows, height))


def _finite(values: Tensor) -> tuple[Tensor, int]:
    """The values with zeros in place of what is not finite, and the number of those."""
    if math.isfinite(values.sum(dtype=torch.float64)):
        return values, 0
    absent = ~values.isfinite()
    return values.masked_fill_(absent, 0), int(absent.sum())


def _signed(highest: Tensor, lowest: Tensor) -> Tensor:
    return torch.where(highest >= -lowest, highest, lowest)
