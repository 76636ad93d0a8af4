"""LLM.int8() outlier features (Dettmers et al. 2022, arXiv 2208.07339, section 4.1, appendix C).

A channel is an outlier feature if |x| >= threshold in at least a share of the layers and at at
least a share of the positions. The paper does not define both shares in full, so every reading is
counted (see `Feature`).
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
"""Number of codes of signed values."""

Key = tuple[str, int]
"""A tensor: site and layer."""


class OutlierFeatures:
    """An accumulator for summaries of all tensors of the criterion.

    The counts are exact and do not depend on the order or the division of the tokens.

    The union over tensors needs all tensors of the same tokens. `close` counts the union of the
    tokens since the last call. Memory is the bitmaps of one chunk for any number of tokens.

    Args:
        tensors: site and layer of each tensor.
        channels: number of channels of every tensor.
        threshold: a value is an outlier if |x| >= this, compared in float32.
        sequences: number of sequences of the run.

    Attributes:
        positions: number of positions with a finite value in at least one tensor, (sequence,).
        measured: number of positions with a finite value in the tensor, (tensor, sequence).
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
        """Add a tile of a tensor.

        The tiles of all tensors for the same tokens must be added before `close`.
        """
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
        """Count the union over tensors for the tokens that were added since the last call."""
        for (sequence, _), tokens in self._open.items():
            self.positions[sequence] += np.count_nonzero(tokens.measured)
            if tokens.bitmap is not None:
                self._union.add(np.nonzero(tokens.bitmap)[1], sequence)
        self._open.clear()

    def merge(self, other: OutlierFeatures) -> None:
        """Add the contents of an accumulator of other tokens of the same tensors."""
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
        """Return every channel with at least one outlier, ascending."""
        return [self._feature(channel) for channel in self._counts.channels()]

    def intervals(self, channel: int, bootstrap: Bootstrap) -> dict[str, Interval]:
        """Return the intervals over sequences of a channel's shares, by name of the share.

        A draw counts the affected layers and tensors in its sequences, relative to those with a
        finite value in these sequences. A draw without a position that counts has no share.
        """
        weights = bootstrap.weights
        counts = weights @ self._counts.of(channel).T  # (resample, tensor)
        positions, measured = weights @ self.positions, self._measured_in(bootstrap)
        affected = counts > 0
        by_layer = self._by_layer(affected).sum(axis=1)
        # The same operations as in `_feature`, so that equal numbers give equal bits.
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
        affected, measured_tensors, positions = counts > 0, measured > 0, int(self.positions.sum())
        # If all values of a tensor are finite, the factor is 1. The share is then rounded once,
        # and a share that equals the threshold exactly is not below it.
        scaled = counts[affected] * (positions / measured[affected])
        layers = int(self._by_layer(affected).sum())
        total = int(counts.sum())
        keys, code_counts = self._codes.items()
        own = slice(*np.searchsorted(keys, [channel * SIGNED, (channel + 1) * SIGNED]))
        return Feature(
            channel=channel,
            layers=layers,
            tensors=int(affected.sum()),
            layer_share={
                "layers": layers / int(self._by_layer(measured_tensors).sum()),
                "tensors": int(affected.sum()) / int(measured_tensors.sum()),
            },
            position_share={
                "union": float(self._union.of(channel).sum()) / positions,
                "mean": float(scaled.sum()) / (len(scaled) * positions),
                "max": float(scaled.max()) / positions,
            },
            outlier_values=total,
            positive_share=float(self._positive.of(channel).sum()) / total,
            quartiles=_quartiles(keys[own] % SIGNED, code_counts[own]),
            value=float(self.maxima[channel]),
        )

    def _measured_in(self, bootstrap: Bootstrap) -> Float64:
        """Return the positions of each draw with a finite value, (resample, tensor).

        The result is cached, because it is the same for all channels.
        """
        if self._measured is None or self._measured[0] is not bootstrap:
            self._measured = bootstrap, bootstrap.weights @ self.measured.T
        return self._measured[1]

    def _by_layer(self, of_tensors: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return whether a condition holds in any tensor of each layer.

        Args:
            of_tensors: the condition by tensor, (..., tensor).

        Returns:
            The condition by layer, (..., layer).
        """
        return np.stack(
            [of_tensors[..., rows].any(axis=-1) for rows in self._rows_of_layers()], axis=-1
        )

    def _rows_of_layers(self) -> list[NDArray[np.bool_]]:
        layers = np.array([layer for _, layer in self.tensors])
        return [layers == layer for layer in np.unique(layers)]

    def _take_maxima(self, maxima: Float32) -> None:
        # The positive of two values with equal magnitude, so that the order does not matter.
        own, theirs = np.abs(self.maxima), np.abs(maxima)
        better = (theirs > own) | ((theirs == own) & (maxima > self.maxima))
        self.maxima[better] = maxima[better]


@dataclass
class _Tokens:
    """Masks for the tokens of one tile.

    Attributes:
        measured: whether a token has a finite value in at least one tensor, (token,).
        bitmap: whether a channel has an outlier at a token, (token, channel); None without any.
    """

    measured: NDArray[np.bool_]
    bitmap: NDArray[np.bool_] | None = None

    def mark(self, tokens: NDArray[Any], channels: Int64, shape: tuple[int, int]) -> None:
        if self.bitmap is None:
            self.bitmap = np.zeros(shape, bool)
        self.bitmap[tokens, channels] = True


@dataclass(frozen=True)
class Feature:
    """The outliers of a channel.

    Attributes:
        channel: the channel.
        layers: number of layers with an outlier of the channel in any of their tensors.
        tensors: number of tensors with an outlier of the channel.
        layer_share: share of the affected `layers`, or of the affected `tensors` (layers x sites),
            among those that have a finite value.
        position_share: share of the positions (sequence, position) with an outlier among those with
            a finite value: in at least one tensor (`union`), on average over the affected tensors
            (`mean`), or in the tensor with the largest share (`max`).
        outlier_values: number of outliers over all tensors.
        positive_share: share of the outliers that are positive.
        quartiles: quartiles of the signed outlier values, each the lower of two neighbours. They
            are exact for bfloat16; otherwise the relative error is at most 2^-9.
        value: the outlier with the largest |x|, with its sign.
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
        """Return whether the channel is an outlier feature under one reading of both shares.

        Args:
            layers: minimum layer share.
            positions: minimum position share.
            over: reading of the layer share.
            by: reading of the position share.
        """
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
    """Return codes of signed values that sort in the order of the values."""
    codes = magnitude_codes(np.abs(values)).astype(np.int64)
    return np.where(np.signbit(values), CODES - 1 - codes, CODES + codes)


def _value(ordered: int) -> float:
    return from_code(ordered - CODES) if ordered >= CODES else -from_code(CODES - 1 - ordered)


def _quartiles(codes: Int64, counts: Int64) -> tuple[float, float, float]:
    first, second, third = (_value(lower_quantile(codes, counts, q)) for q in (0.25, 0.5, 0.75))
    return first, second, third
