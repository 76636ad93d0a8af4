"""The sequences with the largest values of each channel, for the interval of its maximum."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.statistics.bootstrap import Bootstrap, in_bits
from outlier_atlas.statistics.codes import Float32, Float64, Int64

KEPT = 16
"""Number of sequences that are kept for each channel.

A draw from n sequences contains none of them with probability (1 - KEPT / n)^n < e^-KEPT, one in
nine million. Its maximum is then taken to be the smallest kept value.
"""


@dataclass
class LargestSequences:
    """An accumulator of the channel maxima of sequences; exact, in any order and split.

    Its memory does not depend on the number of sequences.

    Attributes:
        channels: length of the channel axis.
    """

    channels: int
    _values: Float32 = field(init=False)
    _sequences: Int64 = field(init=False)
    _pending: dict[int, Float32] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._values = np.zeros((0, self.channels), np.float32)
        self._sequences = np.zeros((0, self.channels), np.int64)

    @property
    def values(self) -> Float32:
        """The largest |x| of the kept sequences, descending, (kept, channel); -1 if there is none.

        The first axis is as long as the channel with the most sequences needs, up to `KEPT`.
        """
        self._settle()
        return self._values

    @property
    def sequences(self) -> Int64:
        """The kept sequences, the lowest of equals first, (kept, channel); -1 if there is none."""
        self._settle()
        return self._sequences

    def update(self, values: Float32, sequence: int) -> None:
        """Add the maxima of a tile.

        Args:
            values: (channel,): the largest |x|; negative if there is none.
            sequence: the sequence of the tile.
        """
        earlier = self._pending.get(sequence)
        self._pending[sequence] = values if earlier is None else np.maximum(earlier, values)
        if len(self._pending) == KEPT:  # inserting them together takes as long as inserting one
            self._settle()

    def merge(self, other: LargestSequences) -> None:
        """Add another accumulator of the same channels."""
        self._take(other.values, other.sequences)

    def _settle(self) -> None:
        if self._pending:
            values = np.stack([*self._pending.values()])
            sequences = np.array([*self._pending])[:, None]
            self._pending = {}
            self._take(values, np.where(values < 0, -1, sequences))

    def _take(self, values: Float32, sequences: Int64) -> None:
        """Insert values of sequences, (row, channel); no channel has a sequence twice."""
        if len(self._values):
            values = np.concatenate([self._values, values])
            sequences = np.concatenate([self._sequences, sequences])
            sequences, values = _in_order_of(sequences, -values, sequences, values)
            repeated = sequences[1:] == sequences[:-1]  # the largest of a sequence comes first
            values[1:][repeated], sequences[1:][repeated] = -1, -1
        sequences, values = _in_order_of(-values, sequences, sequences, values)
        some = (values[:KEPT] >= 0).any(axis=1)
        self._values, self._sequences = values[:KEPT][some], sequences[:KEPT][some]

    def intervals(self, bootstrap: Bootstrap) -> tuple[Float64, Float64]:
        """Return both ends of the interval of each channel's maximum, (channel,) each.

        The ends are those of `Bootstrap.maxima`, which needs the values of all sequences. A channel
        without an interval has NaN.
        """
        if bootstrap.sequences < 2 or not len(self.values):
            unknown = np.full(self.channels, np.nan)
            return unknown, unknown
        below = self._draws_below(bootstrap)
        # A draw without any sequence of a channel has no maximum of the channel.
        nowhere = np.where((len(self.values) < KEPT) | (self.values[-1] < 0), below[-1], 0)
        below -= nowhere
        low, high = (
            self._least_with(below, (bootstrap.resamples - nowhere) * share)
            for share in bootstrap.ends
        )
        return low, high

    def _draws_below(self, bootstrap: Bootstrap) -> Int64:
        """Return the number of draws without any of the first k sequences, (kept + 1, channel)."""
        all_draws = in_bits(np.ones(bootstrap.resamples, bool))
        without = np.tile(all_draws, (self.channels, 1))
        counts = [np.full(self.channels, bootstrap.resamples)]
        for sequences in self.sequences:
            if counts[-1].any():
                known = sequences[:, None] >= 0
                without &= np.where(known, ~bootstrap.held[sequences], all_draws)
                counts.append(np.bitwise_count(without).sum(axis=1, dtype=np.int64))
            else:
                counts.append(counts[-1])
        return np.stack(counts)

    def _least_with(self, below: Int64, draws: NDArray[np.float64]) -> Float64:
        """Return the least value that `draws` draws do not exceed: numpy's `inverted_cdf`."""
        enough = below[:-1] >= np.maximum(np.ceil(draws - 1), 0) + 1
        rank = np.maximum(enough.sum(axis=0) - 1, 0)
        values = np.take_along_axis(self.values, rank[None], axis=0)[0].astype(np.float64)
        return np.where(values < 0, np.nan, values)


def _in_order_of(
    first: NDArray[Any], then: NDArray[Any], sequences: Int64, values: Float32
) -> tuple[Int64, Float32]:
    """Return sequences and values, sorted within each channel by `first`, then by `then`."""
    order = np.lexsort((then, first), axis=0)
    return np.take_along_axis(sequences, order, 0), np.take_along_axis(values, order, 0)
