"""What the experts of a layer make of the tokens routed to them: how many, and the largest."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.statistics.tile import Float32, Int64


@dataclass(frozen=True)
class RoutedTile:
    """Tokens `start` and following of one layer, in each of the experts they are routed to.

    Attributes:
        values: (token, routed), float32: the largest |down_proj output|, with its sign.
        experts: (token, routed): which expert.
        channels: (token, routed): the channel in which the value lies.
        start: index of the first token along the store's token axis.
    """

    values: Float32
    experts: Int64
    channels: Int64
    start: int

    @classmethod
    def of(cls, numbers: Float32, start: int) -> RoutedTile:
        """A tile from values, experts and channels, one after the other along the last axis."""
        values, experts, channels = np.split(numbers, 3, axis=1)
        return cls(values, experts.astype(np.int64), channels.astype(np.int64), start)


@dataclass
class ExpertMagnitudes:
    """Accumulates routed tiles of one layer; exact, in any order and split.

    Attributes:
        experts: number of routed experts of the layer.
        routed: per expert the number of tokens routed to it.
        values: per expert the finite value largest in |x|, with its sign; NaN where there is none.
        tokens: per expert the index of its token, the first of equals; -1 where there is none.
        channels: per expert its channel; -1 where there is none.
        nan, infinite: per expert the tokens whose largest |x| is NaN or infinite.
    """

    experts: int
    routed: Int64 = field(init=False)
    values: Float32 = field(init=False)
    tokens: Int64 = field(init=False)
    channels: Int64 = field(init=False)
    nan: Int64 = field(init=False)
    infinite: Int64 = field(init=False)

    def __post_init__(self) -> None:
        self.routed, self.nan, self.infinite = np.zeros((3, self.experts), np.int64)
        self.tokens, self.channels = np.full((2, self.experts), -1, np.int64)
        self.values = np.full(self.experts, np.nan, np.float32)

    def update(self, tile: RoutedTile) -> None:
        """Take a tile."""
        experts, values = tile.experts.ravel(), tile.values.ravel()
        tokens = tile.start + np.repeat(np.arange(len(tile.values)), tile.values.shape[1])
        self.routed += self._counts(experts)
        self.nan += self._counts(experts[np.isnan(values)])
        self.infinite += self._counts(experts[np.isinf(values)])
        self._take(experts, values, tokens, tile.channels.ravel())

    def merge(self, other: ExpertMagnitudes) -> None:
        """Take what another accumulator of the same layer has seen."""
        self.routed += other.routed
        self.nan += other.nan
        self.infinite += other.infinite
        self._take(np.arange(self.experts), other.values, other.tokens, other.channels)

    def _counts(self, experts: Int64) -> NDArray[np.int64]:
        return np.bincount(experts, minlength=self.experts)

    def _take(self, experts: Int64, values: Float32, tokens: Int64, channels: Int64) -> None:
        """Take values of experts, in any order; those that are not finite are left out."""
        there = np.isfinite(values)
        all_experts = np.concatenate([np.arange(self.experts), experts[there]])
        all_values = np.concatenate([self.values, values[there]])
        all_tokens = np.concatenate([self.tokens, tokens[there]])
        all_channels = np.concatenate([self.channels, channels[there]])
        magnitudes = np.nan_to_num(np.abs(all_values), nan=-1)
        order = np.lexsort((all_channels, all_tokens, -magnitudes, all_experts))
        best = order[np.unique(all_experts[order], return_index=True)[1]]
        self.values, self.tokens = all_values[best], all_tokens[best]
        self.channels = all_channels[best]
