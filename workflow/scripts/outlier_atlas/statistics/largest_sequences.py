"""Of each channel the sequences with the largest values: what its maximum's interval asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.statistics.bootstrap import Bootstrap, in_bits
from outlier_atlas.statistics.codes import Float32, Float64, Int64

KEPT = 16
"""Sequences that are kept of a channel. Of n sequences a draw holds none of them with probability
(1 - KEPT / n)^n < e^-KEPT, one in nine million; it is then taken to have the least that is kept."""


@dataclass
class LargestSequences:
    """Accumulates maxima of tiles by sequence; exact, in any order and split.

    Memory does not depend on the number of sequences.

    Attributes:
        channels: length of the channel axis.
    """

    channels: int
    _values: Float32 = field(init=False)
    _sequences: Int64 = field(init=False)
    _waiting: dict[int, Float32] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._values = np.zeros((0, self.channels), np.float32)
        self._sequences = np.zeros((0, self.channels), np.int64)

    @property
    def values(self) -> Float32:
        """(kept, channel): the largest |x| of a sequence, descending; -1 where there is none.

        As many are kept as the channel with the most has, up to `KEPT`.
        """
        self._settle()
        return self._values

    @property
    def sequences(self) -> Int64:
        """(kept, channel): which, the lowest of equals first; -1 where there is none."""
        self._settle()
        return self._sequences

    def update(self, values: Float32, sequence: int) -> None:
        """Take the maxima of a tile.

        Args:
            values: (channel,): |x|; negative where there is none.
            sequence: that of the tile.
        """
        waiting = self._waiting.get(sequence)
        self._waiting[sequence] = values if waiting is None else np.maximum(waiting, values)
        if len(self._waiting) == KEPT:  # sorted in together they take as long as one alone
            self._settle()

    def merge(self, other: LargestSequences) -> None:
        """Take what another accumulator of the same channels has seen."""
        self._take(other.values, other.sequences)

    def _settle(self) -> None:
        if self._waiting:
            values = np.stack([*self._waiting.values()])
            sequences = np.array([*self._waiting])[:, None]
            self._waiting = {}
            self._take(values, np.where(values < 0, -1, sequences))

    def _take(self, values: Float32, sequences: Int64) -> None:
        """Take (row, channel) values of sequences; no channel has one of them twice."""
        if len(self._values):
            values = np.concatenate([self._values, values])
            sequences = np.concatenate([self._sequences, sequences])
            sequences, values = _in_order_of(sequences, -values, sequences, values)
            again = sequences[1:] == sequences[:-1]  # the largest of a sequence comes first
            values[1:][again], sequences[1:][again] = -1, -1
        sequences, values = _in_order_of(-values, sequences, sequences, values)
        some = (values[:KEPT] >= 0).any(axis=1)
        self._values, self._sequences = values[:KEPT][some], sequences[:KEPT][some]

    def intervals(self, bootstrap: Bootstrap) -> tuple[Float64, Float64]:
        """(channel,): both ends of each maximum's interval over sequences; NaN where it has none.

        Those of `Bootstrap.maxima`, which takes the values of all sequences.
        """
        if bootstrap.sequences < 2 or not len(self.values):
            none = np.full(self.channels, np.nan)
            return none, none
        below = self._draws_below(bootstrap)
        # A draw that holds no sequence of a channel has no maximum of it.
        nowhere = np.where((len(self.values) < KEPT) | (self.values[-1] < 0), below[-1], 0)
        below -= nowhere
        low, high = (
            self._least_with(below, (bootstrap.resamples - nowhere) * share)
            for share in bootstrap.ends
        )
        return low, high

    def _draws_below(self, bootstrap: Bootstrap) -> Int64:
        """(kept + 1, channel): the draws that hold none of the first so many sequences."""
        everything = in_bits(np.ones(bootstrap.resamples, bool))
        without = np.tile(everything, (self.channels, 1))
        counts = [np.full(self.channels, bootstrap.resamples)]
        for sequences in self.sequences:
            if counts[-1].any():
                known = sequences[:, None] >= 0
                without &= np.where(known, ~bootstrap.held[sequences], everything)
                counts.append(np.bitwise_count(without).sum(axis=1, dtype=np.int64))
            else:
                counts.append(counts[-1])
        return np.stack(counts)

    def _least_with(self, below: Int64, draws: NDArray[np.float64]) -> Float64:
        """The least value that at least so many draws do not exceed: numpy's `inverted_cdf`."""
        enough = below[:-1] >= np.maximum(np.ceil(draws - 1), 0) + 1
        rank = np.maximum(enough.sum(axis=0) - 1, 0)
        found = np.take_along_axis(self.values, rank[None], axis=0)[0].astype(np.float64)
        return np.where(found < 0, np.nan, found)


def _in_order_of(
    first: NDArray[Any], then: NDArray[Any], sequences: Int64, values: Float32
) -> tuple[Int64, Float32]:
    """Sequences and values, each channel's in an order of its own."""
    order = np.lexsort((then, first), axis=0)
    return np.take_along_axis(sequences, order, 0), np.take_along_axis(values, order, 0)
