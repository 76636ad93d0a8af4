"""Whole sequences, reassembled from the summaries of their tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np

from outlier_atlas.statistics.codes import Float32, Int64, from_code, lower_quantile
from outlier_atlas.statistics.medians import median_of
from outlier_atlas.statistics.summary import Summary, Values

ValuesOf = Callable[[Summary], Values]
"""Function that reads the values of the included tokens of a tile, (token, channel)."""


@dataclass(frozen=True)
class WholeSequence:
    """All tiles of a sequence at one site and layer.

    Attributes:
        tiles: the summaries, ordered by their first token.
    """

    tiles: tuple[Summary, ...]

    def median(self, values_of: ValuesOf | None = None) -> float:
        """Return the exact median of |x| over all tokens and channels, the lower middle value.

        The median without finite values is NaN.

        Args:
            values_of: reads the values if the summaries do not determine the median: if the
                sequence spans several chunks of a stored site in float32 or float16.
        """
        for tile in self.tiles:
            if not np.isnan(tile.sequence_median):
                return tile.sequence_median
        codes, counts = self._joined("codes").astype(np.int64), self._joined("code_counts")
        if not len(codes):
            return float("nan")
        if len(self.tiles) > 1:
            counts = np.bincount(codes, counts).astype(np.int64)  # float64 counts to 2^53
            codes = np.flatnonzero(counts)
            counts = counts[codes]
        if all(tile.codes_are_exact for tile in self.tiles):
            return from_code(lower_quantile(codes, counts, 0.5))
        assert values_of is not None, "summaries of unstored sites have the median"
        return median_of(codes, counts, (values_of(tile) for tile in self.tiles))

    @cached_property
    def mean(self) -> float:
        """Mean of |x| over all tokens and channels; NaN without finite values."""
        finite = sum(tile.values - tile.nan - tile.infinite for tile in self.tiles)
        return sum(tile.magnitudes for tile in self.tiles) / finite if finite else float("nan")

    @cached_property
    def tokens(self) -> Int64:
        """Indices of the included tokens along the token axis, (token,)."""
        return np.concatenate([tile.start + tile.token.astype(np.int64) for tile in self.tiles])

    @cached_property
    def token_values(self) -> Float32:
        """Value of each token that is largest in |x|, with its sign, (token,)."""
        values: Float32 = self._joined("token_value")
        return values

    @cached_property
    def token_channels(self) -> Int64:
        """Channel of each token's largest |x|, (token,)."""
        channels: Int64 = self._joined("token_channel")
        return channels

    @cached_property
    def token_medians(self) -> Float32:
        """Median of |x| over the channels of each token, (token,)."""
        medians: Float32 = self._joined("token_median")
        return medians

    @cached_property
    def high(self) -> tuple[Int64, Int64, Float32]:
        """Token indices, channels and values of the exceedances, (exceedance,) each."""
        tokens = [tile.start + tile.high_token.astype(np.int64) for tile in self.tiles]
        return np.concatenate(tokens), self._joined("high_channel"), self._joined("high_value")

    def _joined(self, name: str) -> Any:
        first, *others = (getattr(tile, name) for tile in self.tiles)
        return np.concatenate([first, *others]) if others else first


Result = TypeVar("Result")


class BySequence(Generic[Result]):
    """An accumulator of the summaries of one site and layer; exact, in any order and split.

    A sequence is evaluated when all of its tokens were added, because its median, for example, is
    not known before. Memory holds the results and the summaries of the incomplete sequences.

    Args:
        starts: (sequences + 1,): index of each sequence's first token, and the number of tokens.
        evaluate: function that returns the results of a whole sequence, which can be sorted.
    """

    def __init__(
        self, starts: Int64, evaluate: Callable[[WholeSequence], Iterable[Result]]
    ) -> None:
        self._starts = starts
        self._evaluate = evaluate
        self._incomplete: dict[int, list[Summary]] = {}
        self._results: list[Result] = []

    def update(self, summary: Summary) -> None:
        """Add the summary of a tile."""
        tiles = self._incomplete.setdefault(summary.sequence, [])
        tiles.append(summary)
        first, stop = self._starts[summary.sequence : summary.sequence + 2]
        if sum(tile.tokens for tile in tiles) == stop - first:
            del self._incomplete[summary.sequence]
            ordered = sorted(tiles, key=lambda tile: tile.start)
            self._results += self._evaluate(WholeSequence(tuple(ordered)))

    def merge(self, other: BySequence[Result]) -> None:
        """Add another accumulator of the same site and layer with other tokens."""
        self._results += other._results
        for tiles in other._incomplete.values():
            for tile in tiles:
                self.update(tile)

    def results(self) -> list[Result]:
        """Return the results of all sequences, sorted."""
        assert not self._incomplete, "all tokens were added"
        return sorted(self._results)  # type: ignore[type-var]
