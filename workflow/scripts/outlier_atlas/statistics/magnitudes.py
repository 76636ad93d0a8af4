"""Magnitudes of a site and layer: the largest, the median, and the maximum of each channel."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from outlier_atlas.statistics.codes import CODES, Float32, Int64, from_code, lower_quantile
from outlier_atlas.statistics.largest_sequences import LargestSequences
from outlier_atlas.statistics.one_pass import TOP
from outlier_atlas.statistics.summary import Summary


@dataclass
class Magnitudes:
    """An accumulator of the summaries of one site and layer; exact, in any order and split.

    Attributes:
        channels: length of the channel axis.
        sequences: number of sequences of the run.
        top: the largest |x|, descending, at most `TOP`.
        maxima: (channel,): the finite value largest in |x|, with its sign; NaN if there is none.
        tokens: (channel,): index of the token of the maximum, the first of equals; -1 if there is
            none.
        of_sequences: (sequence,): the largest |x| of each sequence; NaN if there is none.
        largest: the sequences with the largest |x| of each channel.
        histogram: (CODES,): count of each code of |x|.
        values, nan, infinite: number of values, and of those that are NaN or infinite.
    """

    channels: int
    sequences: int
    top: list[float] = field(default_factory=list)
    maxima: Float32 = field(init=False)
    tokens: Int64 = field(init=False)
    of_sequences: Float32 = field(init=False)
    largest: LargestSequences = field(init=False)
    histogram: Int64 = field(default_factory=lambda: np.zeros(CODES, np.int64))
    values: int = 0
    nan: int = 0
    infinite: int = 0

    def __post_init__(self) -> None:
        self.maxima = np.full(self.channels, np.nan, np.float32)
        self.tokens = np.full(self.channels, -1, np.int64)
        self.of_sequences = np.full(self.sequences, np.nan, np.float32)
        self.largest = LargestSequences(self.channels)

    def update(self, summary: Summary) -> None:
        """Add the summary of a tile."""
        self.values += summary.values
        self.nan += summary.nan
        self.infinite += summary.infinite
        self.histogram[summary.codes] += summary.code_counts
        token = summary.channel_token.astype(np.int64)
        self._take_maxima(summary.channel_value, np.where(token < 0, -1, summary.start + token))
        self.largest.update(_magnitude(summary.channel_value), summary.sequence)
        self._take_top(summary.top.tolist())
        if len(summary.top):
            largest = np.fmax(self.of_sequences[summary.sequence], summary.top[0])
            self.of_sequences[summary.sequence] = largest

    def merge(self, other: Magnitudes) -> None:
        """Add another accumulator of the same site and layer."""
        self.values += other.values
        self.nan += other.nan
        self.infinite += other.infinite
        self.histogram += other.histogram
        self._take_maxima(other.maxima, other.tokens)
        self.largest.merge(other.largest)
        self._take_top(other.top)
        self.of_sequences = np.fmax(self.of_sequences, other.of_sequences)

    @property
    def median(self) -> float:
        """Median of |x| over all finite values, the lower of the two middle ones.

        It is exact for bfloat16, and otherwise has a relative error of at most 2^-9. The median of
        no values is NaN.
        """
        if not self.histogram.any():
            return float("nan")
        return from_code(lower_quantile(np.arange(CODES), self.histogram, 0.5))

    @property
    def largest_channel(self) -> int | None:
        """Channel of the largest |x|; among equals that of the earliest token, then the lowest."""
        if (self.tokens < 0).all():
            return None
        order = np.lexsort((np.arange(self.channels), self.tokens, -_magnitude(self.maxima)))
        return int(order[0])

    def _take_maxima(self, maxima: Float32, tokens: Int64) -> None:
        mine, theirs = np.abs(self.maxima), np.abs(maxima)  # NaN if there is none
        better = (theirs > mine) | ((theirs == mine) & (tokens < self.tokens))
        better |= (self.tokens < 0) & (tokens >= 0)
        self.maxima = np.where(better, maxima, self.maxima)
        self.tokens = np.where(better, tokens, self.tokens)

    def _take_top(self, largest: list[float]) -> None:
        self.top = sorted([*self.top, *largest], reverse=True)[:TOP]


def _magnitude(maxima: Float32) -> Float32:
    """Return |x| of channel maxima, with -1 for channels without one."""
    return np.where(np.isnan(maxima), np.float32(-1), np.abs(maxima))
