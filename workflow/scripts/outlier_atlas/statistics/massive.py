"""Massive activations (Sun et al. 2024, arXiv 2402.17762).

A value is massive where |x| > `absolute` and |x| >= `ratio` times the median of |x|. The paper's
median is over all tokens and channels of the sequence in that layer (`tensor`); the one over the
token's own channels (`token`) is offered under its own name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.statistics.tile import (
    Float32,
    Int64,
    Tile,
    bfloat16_codes,
    from_code,
    lower_quantile,
)


@dataclass(frozen=True, order=True)
class MassiveActivation:
    """One massive activation of a site and layer, with both medians."""

    token: int
    channel: int
    value: float
    tensor_median: float
    token_median: float


CANDIDATE = np.dtype(
    [("token", "<i8"), ("channel", "<i8"), ("value", "<f4"), ("token_median", "<f4")]
)
"""A value that is massive if its sequence's median is small enough."""


@dataclass
class _Sequence:
    """A sequence as far as it was seen: its histogram of |x| and what may prove massive."""

    tokens: int = 0
    codes: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    candidates: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, CANDIDATE))

    def take(self, other: _Sequence) -> None:
        self.tokens += other.tokens
        self.candidates = np.concatenate([self.candidates, other.candidates])
        codes = np.concatenate([self.codes, other.codes])
        counts = np.concatenate([self.counts, other.counts])
        self.codes, inverse = np.unique(codes, return_inverse=True)
        self.counts = np.zeros(len(self.codes), np.int64)
        np.add.at(self.counts, inverse, counts)


class MassiveActivations:
    """Accumulates tiles of one site and layer; exact, in any order and split.

    A sequence is decided on when all of its tokens have been seen: before that its median is not
    known. Memory is a histogram and the candidates of each sequence that is under way.

    Args:
        starts: index of each sequence's first token, and the number of tokens, ascending.
        absolute: a massive activation has |x| > this ...
        ratio: ... and |x| >= this many times the median, compared in float64.
        median: which median.
    """

    def __init__(
        self, starts: Int64, absolute: float, ratio: float, median: Literal["tensor", "token"]
    ) -> None:
        self._starts = starts
        self._absolute = np.float32(absolute)
        self._ratio = ratio
        self._median = median
        self._under_way: dict[int, _Sequence] = {}
        self._found: list[MassiveActivation] = []

    def update(self, tile: Tile) -> None:
        """Take a tile."""
        stop = tile.start + len(tile.values)
        first = int(np.searchsorted(self._starts, tile.start, side="right")) - 1
        for sequence in range(first, int(np.searchsorted(self._starts, stop, side="left"))):
            begin = max(tile.start, int(self._starts[sequence]))
            end = min(stop, int(self._starts[sequence + 1]))
            magnitudes = tile.magnitudes[begin - tile.start : end - tile.start]
            whole = end - begin == self._starts[sequence + 1] - self._starts[sequence]
            if whole and not (magnitudes > self._absolute).any():
                continue  # nothing here can be massive, whatever the median
            values = tile.values[begin - tile.start : end - tile.start]
            self._take(sequence, _part(magnitudes, values, begin, self._absolute))

    def merge(self, other: MassiveActivations) -> None:
        """Take what another accumulator of the same site and layer has seen of other tokens."""
        self._found += other._found
        for sequence, part in other._under_way.items():
            self._take(sequence, part)

    def found(self) -> list[MassiveActivation]:
        """The massive activations, by token and channel."""
        assert not self._under_way, "all tokens were seen"
        return sorted(self._found)

    def _take(self, sequence: int, part: _Sequence) -> None:
        seen = self._under_way.setdefault(sequence, _Sequence())
        seen.take(part)
        if seen.tokens == self._starts[sequence + 1] - self._starts[sequence]:
            self._found += self._decide(self._under_way.pop(sequence))

    def _decide(self, sequence: _Sequence) -> Iterator[MassiveActivation]:
        if not len(sequence.candidates):
            return
        tensor_median = from_code(lower_quantile(sequence.codes, sequence.counts, 0.5))
        medians = sequence.candidates["token_median"].astype(np.float64)
        least = self._ratio * (tensor_median if self._median == "tensor" else medians)
        values = np.abs(sequence.candidates["value"].astype(np.float64))
        for token, channel, value, token_median in sequence.candidates[values >= least].tolist():
            yield MassiveActivation(token, channel, value, tensor_median, token_median)


def _part(magnitudes: Float32, values: Float32, start: int, absolute: np.float32) -> _Sequence:
    histogram = np.bincount(bfloat16_codes(magnitudes[magnitudes >= 0]))
    codes = np.flatnonzero(histogram)
    rows, columns = np.nonzero(magnitudes > absolute)
    candidates = np.zeros(len(rows), CANDIDATE)
    candidates["token"] = start + rows
    candidates["channel"] = columns
    candidates["value"] = values[rows, columns]
    with_any, inverse = np.unique(rows, return_inverse=True)
    medians = np.array([_lower_median(magnitudes[row]) for row in with_any], np.float32)
    candidates["token_median"] = medians[inverse]
    return _Sequence(len(magnitudes), codes, histogram[codes], candidates)


def _lower_median(magnitudes: Float32) -> float:
    """Median over the finite |x| of a token, the lower of the two middle ones."""
    finite = magnitudes[magnitudes >= 0]
    middle = (len(finite) - 1) // 2
    return float(np.partition(finite, middle)[middle])
