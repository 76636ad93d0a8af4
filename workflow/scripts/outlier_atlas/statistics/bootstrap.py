"""Bootstrap over sequences, which shows how much a number depends on the choice of sequences.

Each resample draws as many sequences as the run has, with replacement. Intervals are percentile
intervals (Efron and Tibshirani 1993, chapter 13). The draws are seeded, so equal sequences give
equal intervals.
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
"""Lower and upper end; None if there is only one sequence or no number."""


@dataclass(frozen=True)
class Bootstrap:
    """The bootstrap draws of a run's sequences.

    Attributes:
        sequences: number of sequences.
        resamples: number of draws, each of `sequences` sequences.
        seed: seed of the draws.
        level: share of the draws inside an interval.
    """

    sequences: int
    resamples: int
    seed: int
    level: float

    def record(self) -> dict[str, float]:
        """Return the settings, by their keys in the configuration."""
        return {"resamples": self.resamples, "seed": self.seed, "level": self.level}

    @cached_property
    def weights(self) -> Float64:
        """Number of times that each draw contains each sequence, (resample, sequence)."""
        random = np.random.default_rng(self.seed)
        even = np.full(self.sequences, 1 / self.sequences)
        return random.multinomial(self.sequences, even, self.resamples).astype(np.float64)

    @cached_property
    def _drawn(self) -> NDArray[np.bool_]:
        """Mask of the sequences that each draw contains, (sequence, resample)."""
        return np.ascontiguousarray(self.weights.T > 0)

    @cached_property
    def held(self) -> NDArray[np.uint64]:
        """Draws that contain a sequence as one bit each, (sequence, resample / 64)."""
        return in_bits(self._drawn)

    @property
    def ends(self) -> tuple[float, float]:
        """Shares of the draws below the two ends of an interval."""
        tail = (1 - self.level) / 2
        return tail, 1 - tail

    def maxima(self, values: NDArray[Any]) -> Interval:
        """Return the interval of the maximum over sequences of `values`, (sequence,) or NaN."""
        return self.interval(self.largest(values))

    def largest(self, values: NDArray[Any]) -> Float64:
        """Return the maximum over the sequences of each draw, (resample,); NaN if it has none."""
        known = np.where(np.isnan(values), -np.inf, values).astype(np.float64)
        largest = np.where(self._drawn, known[:, None], -np.inf).max(axis=0)
        return np.where(np.isneginf(largest), np.nan, largest)  # +inf is a valid maximum

    def means(self, values: NDArray[Any]) -> Interval:
        """Return the interval of the mean of `values`, (sequence,), over those that are not NaN."""
        known = ~np.isnan(values)
        return self.ratios(np.where(known, values, 0), known)

    def ratios(self, numerators: NDArray[Any], denominators: NDArray[Any]) -> Interval:
        """Return the interval of a ratio of two sums over sequences.

        An infinite numerator makes only those draws infinite that contain its sequence.

        Args:
            numerators, denominators: (sequence,): the part of each sequence in the two sums.
        """
        if self.sequences < 2:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.interval(self._sums(numerators) / (self.weights @ denominators))

    def _sums(self, values: NDArray[Any]) -> Float64:
        """Return the sum over the sequences of each draw, (resample,)."""
        infinite = np.isinf(values)
        # The weight of a sequence that a draw does not contain is 0, and 0 * inf is NaN.
        sums = self.weights @ np.where(infinite, 0, values)
        for sequence in np.flatnonzero(infinite):
            sums[self._drawn[sequence]] += values[sequence]
        return sums

    def interval(self, draws: NDArray[Any]) -> Interval:
        """Return the percentile interval of a number, given its value in each draw, or NaN."""
        known = draws[~np.isnan(draws)]
        if self.sequences < 2 or not len(known):
            return None
        first, last = (max(math.ceil(len(known) * share - 1), 0) for share in self.ends)
        ordered = np.partition(known, (first, last))  # numpy's `inverted_cdf`
        return float(ordered[first]), float(ordered[last])


def in_bits(values: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Return the last axis packed into 64-bit words, padded with 0.

    Bits of words are counted faster than those of bytes.
    """
    missing = -values.shape[-1] % 64
    padding = [(0, 0)] * (values.ndim - 1) + [(0, missing)]
    return np.packbits(np.pad(values, padding), axis=-1).view(np.uint64)
