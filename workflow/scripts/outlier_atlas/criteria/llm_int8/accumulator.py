"""LLM.int8() outlier features (Dettmers et al. 2022, arXiv 2208.07339, section 4.1, appendix C).

A channel is an outlier feature where |x| >= threshold in at least a share of the layers and at at
least a share of the positions. What the paper leaves open about both shares is counted in every
way: see `Feature`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.criteria.llm_int8.settings import LayerShare, PositionShare
from outlier_atlas.statistics.bootstrap import Bootstrap, Interval
from outlier_atlas.statistics.codes import (
    CODES,
    Float32,
    Float64,
    Int64,
    from_code,
    lower_quantile,
    magnitude_codes,
)
from outlier_atlas.statistics.sparse import CountsBySequence, SparseCounts
from outlier_atlas.statistics.summary import Summary

SIGNED = 2 * CODES
"""Number of codes with a sign."""

Key = tuple[str, int]
"""Site and layer: a tensor."""


class OutlierFeatures:
    """Accumulates summaries of all tensors of the criterion; exact, in any order and split.

    The union over tensors needs all tensors of the same tokens: `close` counts the union of those
    seen since the last call, so that memory is one chunk's bitmaps however many tokens there are.

    Args:
        tensors: site and layer of each tensor.
        channels: of every tensor.
        threshold: a value is an outlier where |x| >= this, compared in float32.
        sequences: number of sequences of the run.

    Attributes:
        positions: (sequence,): positions with a finite value in at least one tensor.
        measured: (tensor, sequence): positions with a finite value there.
    """

    def __init__(
        self, tensors: Sequence[Key], channels: int, threshold: float, sequences: int
    ) -> None:
        self.tensors = {tensor: index for index, tensor in enumerate(tensors)}
        self.channels = channels
        self.threshold = np.float32(threshold)
        self.positions = np.zeros(sequences, np.int64)
        self.measured = np.zeros((len(tensors), sequences), np.int64)
        self.maxima = np.zeros(channels, np.float32)
        self._counts = CountsBySequence(len(tensors), sequences)
        self._positive = CountsBySequence(1, sequences)
        self._union = CountsBySequence(1, sequences)
        self._codes = SparseCounts()
        self._open: dict[tuple[int, int], _Tokens] = {}
        self._measured: tuple[Bootstrap, Float64] | None = None

    def update(self, tensor: Key, summary: Summary) -> None:
        """Take a tile of a tensor; all tensors' tiles of the same tokens come before `close`."""
        assert summary.floor <= self.threshold, "all outliers are among the exceedances"
        tokens = self._open.setdefault(
            (summary.sequence, summary.start), _Tokens(np.zeros(len(summary.token), bool))
        )
        assert len(tokens.measured) == len(summary.token), "tiles of the same tokens"
        finite = summary.token_channel >= 0
        tokens.measured |= finite
        self.measured[self.tensors[tensor], summary.sequence] += np.count_nonzero(finite)
        outliers = np.abs(summary.high_value) >= self.threshold
        if not outliers.any():
            return
        columns = summary.high_channel[outliers].astype(np.int64)
        values = summary.high_value[outliers]
        tokens.mark(summary.high_token[outliers], columns, (summary.tokens, self.channels))
        self._counts.add(columns, summary.sequence, self.tensors[tensor])
        self._positive.add(columns[values > 0], summary.sequence)
        self._take_maxima(_maxima(columns, values, self.channels))
        keys = columns * SIGNED + _ordered(values)
        self._codes.add(*np.unique(keys, return_counts=True))

    def close(self) -> None:
        """Count the union over the tensors of the tokens seen since the last call."""
        for (sequence, _), tokens in self._open.items():
            self.positions[sequence] += np.count_nonzero(tokens.measured)
            if tokens.bitmap is not None:
                self._union.add(np.nonzero(tokens.bitmap)[1], sequence)
        self._open.clear()

    def merge(self, other: OutlierFeatures) -> None:
        """Take what another accumulator of the same tensors has seen of other tokens."""
        assert not self._open and not other._open, "closed"
        assert (self.tensors, self.threshold) == (other.tensors, other.threshold)
        self.positions += other.positions
        self.measured += other.measured
        self._take_maxima(other.maxima)
        self._counts.merge(other._counts)
        self._positive.merge(other._positive)
        self._union.merge(other._union)
        self._codes.merge(other._codes)

    def features(self) -> list[Feature]:
        """Every channel with at least one outlier, ascending."""
        return [self._feature(channel) for channel in self._counts.channels()]

    def intervals(self, channel: int, bootstrap: Bootstrap) -> dict[str, Interval]:
        """Of a channel's shares the intervals over sequences, by the name of the share.

        A draw counts the layers and tensors that are affected in its own sequences, among those
        that are finite there; one without a position that counts has no share.
        """
        weights = bootstrap.weights
        counts = weights @ self._counts.of(channel).T  # (resample, tensor)
        positions, measured = weights @ self.positions, self._measured_in(bootstrap)
        affected = counts > 0
        by_layer = self._by_layer(affected).sum(axis=1)
        # As `_feature` has them, so that equal numbers give equal bits.
        wholes = positions * np.maximum(affected.sum(axis=1), 1)
        scaled = counts * (positions[:, None] / np.maximum(measured, 1))
        union, positive = self._union.of(channel)[0], self._positive.of(channel)[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = {
                "layer_share_layers": by_layer / self._by_layer(measured > 0).sum(axis=1),
                "layer_share_tensors": affected.sum(axis=1) / (measured > 0).sum(axis=1),
                "position_share_union": weights @ union / positions,
                "position_share_mean": scaled.sum(axis=1) / wholes,
                "position_share_max": scaled.max(axis=1) / positions,
                "positive_share": weights @ positive / counts.sum(axis=1),
            }
        return {name: bootstrap.interval(of_draws) for name, of_draws in draws.items()}

    def _feature(self, channel: int) -> Feature:
        counts, measured = self._counts.of(channel).sum(axis=1), self.measured.sum(axis=1)
        affected, there, positions = counts > 0, measured > 0, int(self.positions.sum())
        # Counts themselves where all of a tensor is finite: then a share is rounded once, and one
        # that is exactly a threshold is not below it.
        scaled = counts[affected] * (positions / measured[affected])
        layers = int(self._by_layer(affected).sum())
        total = int(counts.sum())
        keys, code_counts = self._codes.items()
        mine = slice(*np.searchsorted(keys, [channel * SIGNED, (channel + 1) * SIGNED]))
        return Feature(
            channel=channel,
            layers=layers,
            tensors=int(affected.sum()),
            layer_share={
                "layers": layers / int(self._by_layer(there).sum()),
                "tensors": int(affected.sum()) / int(there.sum()),
            },
            position_share={
                "union": float(self._union.of(channel).sum()) / positions,
                "mean": float(scaled.sum()) / (len(scaled) * positions),
                "max": float(scaled.max()) / positions,
            },
            outlier_values=total,
            positive_share=float(self._positive.of(channel).sum()) / total,
            quartiles=_quartiles(keys[mine] % SIGNED, code_counts[mine]),
            value=float(self.maxima[channel]),
        )

    def _measured_in(self, bootstrap: Bootstrap) -> Float64:
        """(resample, tensor): positions of each draw with a finite value, the same for all
        channels."""
        if self._measured is None or self._measured[0] is not bootstrap:
            self._measured = bootstrap, bootstrap.weights @ self.measured.T
        return self._measured[1]

    def _by_layer(self, of_tensors: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(..., layer): whether it holds in any tensor of a layer, given (..., tensor)."""
        return np.stack(
            [of_tensors[..., rows].any(axis=-1) for rows in self._rows_of_layers()], axis=-1
        )

    def _rows_of_layers(self) -> list[NDArray[np.bool_]]:
        layers = np.array([layer for _, layer in self.tensors])
        return [layers == layer for layer in np.unique(layers)]

    def _take_maxima(self, maxima: Float32) -> None:
        # Among values of one magnitude the positive one, so that the order does not matter.
        mine, theirs = np.abs(self.maxima), np.abs(maxima)
        better = (theirs > mine) | ((theirs == mine) & (maxima > self.maxima))
        self.maxima[better] = maxima[better]


@dataclass
class _Tokens:
    """Tokens of one tile: which have a finite value in a tensor, and which channels have an outlier
    at which of them."""

    measured: NDArray[np.bool_]
    bitmap: NDArray[np.bool_] | None = None

    def mark(self, tokens: NDArray[Any], channels: Int64, shape: tuple[int, int]) -> None:
        if self.bitmap is None:
            self.bitmap = np.zeros(shape, bool)
        self.bitmap[tokens, channels] = True


@dataclass(frozen=True)
class Feature:
    """What is known of a channel's outliers.

    Attributes:
        channel: the channel.
        layers: layers with an outlier of it in any of their tensors.
        tensors: tensors with an outlier of it.
        layer_share: over `layers` or over `tensors` (layers x sites) that have a finite value.
        position_share: of the positions (sequence, position) with a finite value, those with an
            outlier in at least one tensor (`union`), in an affected tensor on average (`mean`), or
            in the tensor where that share is largest (`max`).
        outlier_values: number of outliers over all tensors.
        positive_share: share of them above zero.
        quartiles: of the outlier values with their signs, the lower of two neighbours; exact for
            bfloat16, otherwise to a relative 2^-9.
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


def _ordered(values: Float32) -> Int64:
    """Codes of signed values: they sort as these do."""
    codes = magnitude_codes(np.abs(values)).astype(np.int64)
    return np.where(np.signbit(values), CODES - 1 - codes, CODES + codes)


def _value(ordered: int) -> float:
    return from_code(ordered - CODES) if ordered >= CODES else -from_code(CODES - 1 - ordered)


def _quartiles(codes: Int64, counts: Int64) -> tuple[float, float, float]:
    first, second, third = (_value(lower_quantile(codes, counts, q)) for q in (0.25, 0.5, 0.75))
    return first, second, third
