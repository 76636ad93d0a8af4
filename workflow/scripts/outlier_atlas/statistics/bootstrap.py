"""Bootstrap over sequences: how far a number depends on which sequences were read.

Sequences are drawn with replacement, as many as there are; percentile intervals (Efron and
Tibshirani 1993, chapter 13). Seeded: equal sequences give equal intervals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.statistics.codes import Float64

Interval = tuple[float, float] | None
"""Lower and upper end; None where one sequence is all there is."""


@dataclass(frozen=True)
class Bootstrap:
    """Draws of the sequences of a run.

    Attributes:
        sequences: how many there are.
        resamples: how often as many are drawn.
        seed: of the draws.
        level: share of the draws that lies within an interval.
    """

    sequences: int
    resamples: int
    seed: int
    level: float

    def record(self) -> dict[str, float]:
        """Its settings, as the configuration names them."""
        return {"resamples": self.resamples, "seed": self.seed, "level": self.level}

    @cached_property
    def weights(self) -> Float64:
        """(resample, sequence): how often each draw holds each sequence."""
        random = np.random.default_rng(self.seed)
        even = np.full(self.sequences, 1 / self.sequences)
        return random.multinomial(self.sequences, even, self.resamples).astype(np.float64)

    @cached_property
    def _drawn(self) -> NDArray[np.bool_]:
        """(sequence, resample): whether a draw holds a sequence."""
        return np.ascontiguousarray(self.weights.T > 0)

    @cached_property
    def held(self) -> NDArray[np.uint64]:
        """(sequence, resample / 64): which draws hold a sequence, a bit each."""
        return in_bits(self._drawn)

    @property
    def ends(self) -> tuple[float, float]:
        """The shares of the draws below the two ends of an interval."""
        tail = (1 - self.level) / 2
        return tail, 1 - tail

    def maxima(self, of_sequences: NDArray[Any]) -> Interval:
        """The interval of a maximum over sequences, given that of each; NaN where it has none."""
        return self.interval(self.largest(of_sequences))

    def largest(self, of_sequences: NDArray[Any]) -> Float64:
        """(resample,): the maximum over the sequences of each draw; NaN where it has none."""
        there = np.where(np.isnan(of_sequences), -np.inf, of_sequences).astype(np.float64)
        largest = np.where(self._drawn, there[:, None], -np.inf).max(axis=0)
        return np.where(np.isneginf(largest), np.nan, largest)  # +inf is a maximum like any other

    def means(self, of_sequences: NDArray[Any]) -> Interval:
        """The interval of a mean over the sequences that have a number."""
        there = ~np.isnan(of_sequences)
        return self.ratios(np.where(there, of_sequences, 0), there)

    def ratios(self, above: NDArray[Any], below: NDArray[Any]) -> Interval:
        """The interval of a ratio of two sums over sequences, given each sequence's part.

        An infinite part above makes the draws that hold its sequence infinite, and no others.
        """
        if self.sequences < 2:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.interval(self._sums(above) / (self.weights @ below))

    def _sums(self, of_sequences: NDArray[Any]) -> Float64:
        """(resample,): the sum over the sequences of each draw."""
        infinite = np.isinf(of_sequences)
        # A draw without a sequence has it 0 times, and 0 * inf is NaN.
        sums = self.weights @ np.where(infinite, 0, of_sequences)
        for sequence in np.flatnonzero(infinite):
            sums[self._drawn[sequence]] += of_sequences[sequence]
        return sums

    def interval(self, of_resamples: NDArray[Any]) -> Interval:
        """The percentile interval of a number, given that of each draw; NaN where it has none."""
        known = of_resamples[~np.isnan(of_resamples)]
        if self.sequences < 2 or not len(known):
            return None
        first, last = (max(math.ceil(len(known) * share - 1), 0) for share in self.ends)
        ordered = np.partition(known, (first, last))  # numpy's `inverted_cdf`
        return float(ordered[first]), float(ordered[last])


def in_bits(values: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """The last axis packed into words, which count faster than bytes; what fills them up is 0."""
    missing = -values.shape[-1] % 64
    padding = [(0, 0)] * (values.ndim - 1) + [(0, missing)]
    return np.packbits(np.pad(values, padding), axis=-1).view(np.uint64)
