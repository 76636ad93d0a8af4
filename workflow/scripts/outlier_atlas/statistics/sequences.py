"""Sequences put together again from the summaries of their tiles, for what needs a whole one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from outlier_atlas.statistics.codes import Float32, Int64, from_code, lower_quantile
from outlier_atlas.statistics.medians import median_of
from outlier_atlas.statistics.summary import Summary

ValuesOf = Callable[[Summary], torch.Tensor]
"""Reads the values of a tile, (token, channel), of the tokens that are not left out."""


@dataclass(frozen=True)
class WholeSequence:
    """All tiles of a sequence, of one site and layer.

    Attributes:
        tiles: by their first token.
    """

    tiles: tuple[Summary, ...]

    def median(self, values_of: ValuesOf | None = None) -> float:
        """Median of |x| over all tokens and channels, exactly; NaN of no finite value.

        It is the lower of the two middle values.

        Args:
            values_of: asked where no summary of an exceedance tells: where the sequence spans
                chunks of a site that is stored, in float32 or float16.
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
        assert values_of is not None, "the summary of what is not stored has the median"
        return median_of(codes, counts, (values_of(tile) for tile in self.tiles))

    @cached_property
    def mean(self) -> float:
        """Mean of |x| over all tokens and channels; NaN of none."""
        finite = sum(tile.values - tile.nan - tile.infinite for tile in self.tiles)
        return sum(tile.magnitudes for tile in self.tiles) / finite if finite else float("nan")

    @cached_property
    def tokens(self) -> Int64:
        """(token,): indices along the token axis of those that are not left out."""
        return np.concatenate([tile.start + tile.token.astype(np.int64) for tile in self.tiles])

    @cached_property
    def token_values(self) -> Float32:
        """(token,): largest in |x|, with its sign."""
        values: Float32 = self._joined("token_value")
        return values

    @cached_property
    def token_channels(self) -> Int64:
        """(token,): the channel of the largest."""
        channels: Int64 = self._joined("token_channel")
        return channels

    @cached_property
    def token_medians(self) -> Float32:
        """(token,): median of |x| over channels."""
        medians: Float32 = self._joined("token_median")
        return medians

    @cached_property
    def high(self) -> tuple[Int64, Int64, Float32]:
        """Token indices, channels and values of the exceedances."""
        tokens = [tile.start + tile.high_token.astype(np.int64) for tile in self.tiles]
        return np.concatenate(tokens), self._joined("high_channel"), self._joined("high_value")

    def _joined(self, name: str) -> Any:
        first, *others = (getattr(tile, name) for tile in self.tiles)
        return np.concatenate([first, *others]) if others else first


Found = TypeVar("Found")


class BySequence(Generic[Found]):
    """Accumulates summaries of one site and layer; exact, in any order and split.

    A sequence is decided on when all of its tokens have been seen: before that its median, say, is
    not known. Memory is what was found, and the summaries of the sequences that are under way.

    Args:
        starts: index of each sequence's first token, and the number of tokens, ascending.
        decide: what is found in a whole sequence; sortable.
    """

    def __init__(self, starts: Int64, decide: Callable[[WholeSequence], Iterable[Found]]) -> None:
        self._starts = starts
        self._decide = decide
        self._under_way: dict[int, list[Summary]] = {}
        self._found: list[Found] = []

    def update(self, summary: Summary) -> None:
        """Take the summary of a tile."""
        tiles = self._under_way.setdefault(summary.sequence, [])
        tiles.append(summary)
        first, stop = self._starts[summary.sequence : summary.sequence + 2]
        if sum(tile.tokens for tile in tiles) == stop - first:
            del self._under_way[summary.sequence]
            ordered = sorted(tiles, key=lambda tile: tile.start)
            self._found += self._decide(WholeSequence(tuple(ordered)))

    def merge(self, other: BySequence[Found]) -> None:
        """Take what another accumulator of the same site and layer has seen of other tokens."""
        self._found += other._found
        for tiles in other._under_way.values():
            for tile in tiles:
                self.update(tile)

    def found(self) -> list[Found]:
        """What was found, in order."""
        assert not self._under_way, "all tokens were seen"
        return sorted(self._found)  # type: ignore[type-var]
