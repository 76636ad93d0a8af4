"""Sparse counts, for keys of which few occur."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.statistics.codes import (
    Float64,
    Int64,
    from_code,
    lower_quantile,
    magnitude_codes,
)

PIECES = 64
"""Additions after which equal keys are merged, so that memory depends only on the keys."""

WAITING = 2**15
"""Numbers that are counted together, which takes little longer than counting a few."""


class SparseCounts:
    """An accumulator of int64 counts by int64 key; exact, in any order."""

    def __init__(self) -> None:
        self._keys = [np.zeros(0, np.int64)]
        self._counts = [np.zeros(0, np.int64)]

    def add(self, keys: Int64, counts: Int64) -> None:
        """Add counts to their keys; a key may appear more than once."""
        self._keys.append(keys)
        self._counts.append(counts)
        if len(self._keys) > PIECES:
            self._add_up()

    def merge(self, other: SparseCounts) -> None:
        """Add the counts of another accumulator."""
        self.add(*other.items())

    def items(self) -> tuple[Int64, Int64]:
        """Return the keys, ascending, and their counts."""
        self._add_up()
        return self._keys[0], self._counts[0]

    def _add_up(self) -> None:
        if len(self._keys) == 1:
            return
        keys, inverse = np.unique(np.concatenate(self._keys), return_inverse=True)
        counts = np.zeros(len(keys), np.int64)
        np.add.at(counts, inverse, np.concatenate(self._counts))
        self._keys, self._counts = [keys], [counts]


class CodeHistogram:
    """A histogram of non-negative numbers by their code, for quantiles to a relative 2^-9."""

    def __init__(self) -> None:
        self._counts = SparseCounts()
        self._pending: list[NDArray[np.uint16]] = []

    def add(self, numbers: Float64) -> None:
        """Add numbers, which may include infinity."""
        with np.errstate(over="ignore"):
            self._pending.append(magnitude_codes(numbers.astype(np.float32)))
        if sum(map(len, self._pending)) > WAITING:
            self._settle()

    def merge(self, other: CodeHistogram) -> None:
        """Add the counts of another accumulator."""
        other._settle()
        self._counts.merge(other._counts)

    def quantiles(self, *quantiles: float) -> list[float]:
        """Return the number at each quantile, the lower of two neighbours; NaN without numbers."""
        self._settle()
        codes, counts = self._counts.items()
        if not len(codes):
            return [float("nan")] * len(quantiles)
        return [from_code(lower_quantile(codes, counts, quantile)) for quantile in quantiles]

    def _settle(self) -> None:
        if not self._pending:
            return
        counts = np.bincount(np.concatenate(self._pending))
        codes = np.flatnonzero(counts)
        self._counts.add(codes, counts[codes])
        self._pending = []


class CountsBySequence:
    """An accumulator of counts by channel, part and sequence; exact, in any order.

    Memory grows with the number of combinations that occur.

    Args:
        parts: number of parts, such as tensors.
        sequences: number of sequences.
    """

    def __init__(self, parts: int, sequences: int) -> None:
        self._shape = (parts, sequences)
        self._sparse = SparseCounts()

    def add(self, channels: Int64, sequence: int, part: int = 0) -> None:
        """Count channels, which may repeat, in a part of a sequence."""
        distinct, counts = np.unique(channels, return_counts=True)
        parts, sequences = self._shape
        self._sparse.add((distinct * parts + part) * sequences + sequence, counts)

    def merge(self, other: CountsBySequence) -> None:
        """Add the counts of another accumulator."""
        assert self._shape == other._shape
        self._sparse.merge(other._sparse)

    def channels(self) -> list[int]:
        """Return the channels that occur, ascending."""
        keys, _ = self._sparse.items()
        return [int(channel) for channel in np.unique(keys // (self._shape[0] * self._shape[1]))]

    def of(self, channel: int) -> Int64:
        """Return the counts of a channel, (part, sequence)."""
        keys, counts = self._sparse.items()
        size = self._shape[0] * self._shape[1]
        span = slice(*np.searchsorted(keys, [channel * size, (channel + 1) * size]))
        dense = np.zeros(size, np.int64)
        dense[keys[span] - channel * size] = counts[span]
        return dense.reshape(self._shape)
