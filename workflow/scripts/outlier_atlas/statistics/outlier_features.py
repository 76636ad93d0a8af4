"""LLM.int8() outlier features (Dettmers et al. 2022, arXiv 2208.07339, section 4.1, appendix C).

A channel is an outlier feature where |x| >= threshold in at least a share of the layers and at at
least a share of the positions. What the paper leaves open about both shares is counted in every
way: see `Feature`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

LayerShare = Literal["layers", "tensors"]
PositionShare = Literal["union", "mean", "max"]

Key = tuple[str, int]
"""Site and layer: a tensor."""


class OutlierFeatures:
    """Accumulates tiles of all tensors of the criterion; exact, in any order of tokens and split.

    The union over tensors needs all tensors of the same tokens: `close` counts the union of those
    seen since the last call, so that memory is one chunk's bitmap however many tokens there are.

    Args:
        tensors: site and layer of each tensor.
        channels: of every tensor.
        threshold: a value is an outlier where |x| >= this, compared in float32.
    """

    def __init__(self, tensors: Sequence[Key], channels: int, threshold: float) -> None:
        self.tensors = tuple(tensors)
        self.channels = channels
        self.threshold = np.float32(threshold)
        self.positions = 0
        self.union = np.zeros(channels, np.int64)
        self.counts = {tensor: np.zeros(channels, np.int64) for tensor in tensors}
        self.positive = np.zeros(channels, np.int64)
        self.maxima = np.zeros(channels, np.float32)
        self._keys = np.zeros(0, np.int64)
        self._key_counts = np.zeros(0, np.int64)
        self._bitmap: NDArray[np.bool_] | None = None

    def update(self, tensor: Key, tile: Tile) -> None:
        """Take a tile of a tensor; all tensors' tiles of the same tokens come before `close`."""
        outliers = tile.magnitudes >= self.threshold
        if self._bitmap is None:
            self._bitmap = np.zeros_like(outliers)
        assert self._bitmap.shape == outliers.shape, "tiles of the same tokens"
        rows, columns = np.nonzero(outliers)
        if not len(rows):
            return
        self._bitmap[rows, columns] = True
        values = tile.values[rows, columns]
        self.counts[tensor] += np.bincount(columns, minlength=self.channels)
        self.positive += np.bincount(columns[values > 0], minlength=self.channels)
        self._take_maxima(_maxima(columns, values, self.channels))
        codes = bfloat16_codes(values)
        self._take_keys(*np.unique(columns * 2**16 + _ordered(codes), return_counts=True))

    def close(self) -> None:
        """Count the union over the tensors of the tokens seen since the last call."""
        if self._bitmap is not None:
            self.positions += len(self._bitmap)
            self.union += self._bitmap.sum(axis=0)
            self._bitmap = None

    def merge(self, other: OutlierFeatures) -> None:
        """Take what another accumulator of the same tensors has seen of other tokens."""
        assert self._bitmap is None and other._bitmap is None, "closed"
        assert (self.tensors, self.threshold) == (other.tensors, other.threshold)
        self.positions += other.positions
        self.union += other.union
        for tensor, counts in other.counts.items():
            self.counts[tensor] += counts
        self.positive += other.positive
        self._take_maxima(other.maxima)
        self._take_keys(other._keys, other._key_counts)

    def features(self) -> list[Feature]:
        """Every channel with at least one outlier, ascending."""
        by_tensor = np.stack([self.counts[tensor] for tensor in self.tensors])
        layers = np.array([layer for _, layer in self.tensors])
        by_layer = np.stack([by_tensor[layers == layer].any(axis=0) for layer in np.unique(layers)])
        return [
            self._feature(int(channel), by_tensor[:, channel], by_layer[:, channel])
            for channel in np.flatnonzero(by_tensor.any(axis=0))
        ]

    def _feature(self, channel: int, counts: Int64, by_layer: NDArray[np.bool_]) -> Feature:
        affected = counts[counts > 0]
        total = int(counts.sum())
        mine = slice(*np.searchsorted(self._keys, [channel * 2**16, (channel + 1) * 2**16]))
        codes, code_counts = self._keys[mine] % 2**16, self._key_counts[mine]
        return Feature(
            channel=channel,
            layers=int(by_layer.sum()),
            tensors=len(affected),
            layer_share={
                "layers": float(by_layer.mean()),
                "tensors": len(affected) / len(self.tensors),
            },
            position_share={
                "union": float(self.union[channel]) / self.positions,
                "mean": float(affected.mean()) / self.positions,
                "max": float(affected.max()) / self.positions,
            },
            outlier_values=total,
            positive_share=float(self.positive[channel]) / total,
            quartiles=_quartiles(codes, code_counts),
            value=float(self.maxima[channel]),
        )

    def _take_maxima(self, maxima: Float32) -> None:
        # Among values of one magnitude the positive one, so that the order does not matter.
        mine, theirs = np.abs(self.maxima), np.abs(maxima)
        better = (theirs > mine) | ((theirs == mine) & (maxima > self.maxima))
        self.maxima[better] = maxima[better]

    def _take_keys(self, keys: Int64, counts: Int64) -> None:
        all_keys = np.concatenate([self._keys, keys])
        self._keys, inverse = np.unique(all_keys, return_inverse=True)
        # bincount's weights would be float64, exact only up to 2^53.
        self._key_counts = _sum_by(inverse, np.concatenate([self._key_counts, counts]))


@dataclass(frozen=True)
class Feature:
    """What is known of a channel's outliers.

    Attributes:
        channel: the channel.
        layers: layers with an outlier of it in any of their tensors.
        tensors: tensors with an outlier of it.
        layer_share: over `layers` or over `tensors` (layers x sites).
        position_share: of the positions (sequence, position), those with an outlier in at least
            one tensor (`union`), in an affected tensor on average (`mean`), or in the tensor that
            has most (`max`).
        outlier_values: number of outliers over all tensors.
        positive_share: share of them above zero.
        quartiles: of the outlier values with their signs, the lower of two neighbours; exact for
            bfloat16, otherwise rounded to it.
        value: the largest outlier in |x|, with its sign.
    """

    channel: int
    layers: int
    tensors: int
    layer_share: dict[LayerShare, float]
    position_share: dict[PositionShare, float]
    outlier_values: int
    positive_share: float
    quartiles: tuple[float, float, float]
    value: float

    def passes(self, layers: float, positions: float, over: LayerShare, by: PositionShare) -> bool:
        """Whether it is an outlier feature, both shares read in these ways."""
        return self.layer_share[over] >= layers and self.position_share[by] >= positions

    @property
    def one_sided(self) -> bool:
        """Whether all outliers have one sign."""
        return self.positive_share in (0.0, 1.0)


def _maxima(columns: Int64, values: Float32, channels: int) -> Float32:
    highest = np.zeros(channels, np.float32)
    lowest = np.zeros(channels, np.float32)
    np.maximum.at(highest, columns, values)
    np.minimum.at(lowest, columns, values)
    return np.where(highest >= -lowest, highest, lowest)


def _ordered(codes: NDArray[np.uint16]) -> Int64:
    """bfloat16 codes, renumbered so that they sort as their values do."""
    wide = codes.astype(np.int64)
    return np.where(wide >= 2**15, 2**16 - 1 - wide, wide + 2**15)


def _value(ordered: int) -> float:
    code = ordered - 2**15 if ordered >= 2**15 else 2**16 - 1 - ordered
    return from_code(code)


def _quartiles(codes: Int64, counts: Int64) -> tuple[float, float, float]:
    first, second, third = (_value(lower_quantile(codes, counts, q)) for q in (0.25, 0.5, 0.75))
    return first, second, third


def _sum_by(groups: Int64, counts: Int64) -> Int64:
    sums = np.zeros(int(groups.max(initial=-1)) + 1, np.int64)
    np.add.at(sums, groups, counts)
    return sums
