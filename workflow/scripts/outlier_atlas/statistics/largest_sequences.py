"""Of each channel the sequences with the largest values: what its maximum's interval asks for."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.statistics.bootstrap import Bootstrap
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
        values: (kept, channel): the largest |x| of a sequence, descending; -1 where there is none.
        sequences: (kept, channel): which, the lowest of equals first; -1 where there is none. As
            many are kept as the channel with the most has, up to `KEPT`.
    """

    channels: int
    values: Float32 = field(init=False)
    sequences: Int64 = field(init=False)

    def __post_init__(self) -> None:
        self.values = np.zeros((0, self.channels), np.float32)
        self.sequences = np.zeros((0, self.channels), np.int64)

    def update(self, values: Float32, sequences: Int64) -> None:
        """Take maxima.

        Args:
            values: (channel,): |x|; negative where there is none.
            sequences: (channel,): the sequence of each.
        """
        least = np.maximum(self.values[-1], 0) if len(self.values) == KEPT else 0
        beating = np.flatnonzero(values >= least)
        if not len(beating):
            return
        if len(self.values) < KEPT:
            none = np.full((1, self.channels), -1)
            self.values = np.vstack([self.values, none.astype(np.float32)])
            self.sequences = np.vstack([self.sequences, none])
        kept, known = self.values[:, beating], self.sequences[:, beating]
        new, sequence = values[beating], sequences[beating]
        same = known == sequence
        new = np.maximum(new, np.where(same, kept, -1).max(axis=0))
        kept = np.vstack([np.where(same, np.float32(-1), kept), new])
        known = np.vstack([np.where(same, -1, known), sequence])
        order = np.lexsort((known, -kept), axis=0)[:-1]
        self.values[:, beating] = np.take_along_axis(kept, order, axis=0)
        self.sequences[:, beating] = np.take_along_axis(known, order, axis=0)
        if not (self.values[-1] >= 0).any():
            self.values, self.sequences = self.values[:-1], self.sequences[:-1]

    def merge(self, other: LargestSequences) -> None:
        """Take what another accumulator of the same channels has seen."""
        for values, sequences in zip(other.values, other.sequences, strict=True):
            self.update(values, sequences)

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
        everything = np.packbits(np.ones(bootstrap.resamples, bool))
        without = np.tile(everything, (self.channels, 1))
        counts = [np.full(self.channels, bootstrap.resamples)]
        for sequences in self.sequences:
            if counts[-1].any():
                known = sequences[:, None] >= 0
                without &= np.where(known, ~bootstrap.held[sequences], np.uint8(0xFF))
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
