"""Statistics of the experts of a layer: tokens routed to them, and their largest outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.statistics.codes import Float32, Int64
from outlier_atlas.statistics.summary import TileRange, Values, host_values
from outlier_atlas.statistics.super_weights import Spike


@dataclass(frozen=True)
class ExpertSummary:
    """The summary of a tile of `expert_out`, by expert; the counterpart of `Summary`.

    Attributes:
        sequence, start, tokens: the `TileRange` of the tile.
        routed: (expert,): number of tokens routed to the expert.
        nan, infinite: (expert,): number of tokens whose largest |x| is NaN or infinite.
        value: (expert,): the finite value largest in |x|, with its sign; NaN if there is none.
        token, channel: (expert,): token of that value, counted from the tile's first, and its
            channel; -1 if there is none. Among equals the earliest token, then the lowest channel.
        input, input_channel: (expert,): the input largest in |x| of the same token and expert, and
            its channel; NaN and -1 if there is no value.
    """

    sequence: int
    start: int
    tokens: int
    routed: Int64
    nan: Int64
    infinite: Int64
    value: Float32
    token: Int64
    channel: Int64
    input: Float32
    input_channel: Int64


def summarize_experts(
    numbers: Values,
    tile: TileRange,
    experts: int,
    included: NDArray[np.bool_] | None = None,
) -> ExpertSummary:
    """Return the summary of a tile of `expert_out`.

    Args:
        numbers: (token, 5 x routed), for each of the experts that a token is routed to: the largest
            |down_proj output| with its sign; the expert; the channel of that output; the largest
            |down_proj input|; the channel of that input.
        tile: the tokens of the tile.
        experts: number of routed experts of the layer.
        included: (token,): whether the token is included; None includes all tokens.
    """
    parts = np.split(host_values(numbers), 5, axis=1)
    routed = parts[0].shape[1]
    rows: Int64 = np.arange(tile.tokens) if included is None else np.flatnonzero(included)
    tokens = np.repeat(rows, routed)
    values, *others, inputs, input_channels = (part[rows].ravel() for part in parts)
    chosen, channels = (part.astype(np.int64) for part in others)
    peaks = Peaks(values, tokens, channels, inputs, input_channels.astype(np.int64))

    def count(chosen: Int64) -> Int64:
        return np.bincount(chosen, minlength=experts)

    return ExpertSummary(
        tile.sequence,
        tile.start,
        tile.tokens,
        count(chosen),
        count(chosen[np.isnan(values)]),
        count(chosen[np.isinf(values)]),
        *vars(largest_of_each(experts, chosen, peaks)).values(),
    )


@dataclass
class ExpertMagnitudes:
    """An accumulator of the expert summaries of one layer; exact, in any order and split.

    Attributes:
        experts: number of routed experts of the layer.
        sequences: number of sequences of the run.
        routed: (sequence, expert): number of tokens routed to the expert.
        largest: (sequence, expert): the largest |x|; NaN if there is none.
        values: (expert,): the finite value largest in |x|, with its sign; NaN if there is none.
        tokens: (expert,): index of the token of that value, the first of equals; -1 if there is
            none.
        channels: (expert,): channel of that value; -1 if there is none.
        inputs, input_channels: (expert,): the largest input of the same token, and its channel.
        nan, infinite: (expert,): number of tokens whose largest |x| is NaN or infinite.
    """

    experts: int
    sequences: int
    routed: Int64 = field(init=False)
    largest: Float32 = field(init=False)
    values: Float32 = field(init=False)
    tokens: Int64 = field(init=False)
    channels: Int64 = field(init=False)
    inputs: Float32 = field(init=False)
    input_channels: Int64 = field(init=False)
    nan: Int64 = field(init=False)
    infinite: Int64 = field(init=False)

    def __post_init__(self) -> None:
        self.routed = np.zeros((self.sequences, self.experts), np.int64)
        self.largest = np.full((self.sequences, self.experts), np.nan, np.float32)
        self.nan, self.infinite = np.zeros((2, self.experts), np.int64)
        self.tokens, self.channels, self.input_channels = np.full((3, self.experts), -1, np.int64)
        self.values, self.inputs = np.full((2, self.experts), np.nan, np.float32)

    def update(self, summary: ExpertSummary) -> None:
        """Add the summary of a tile."""
        self.routed[summary.sequence] += summary.routed
        largest = np.fmax(self.largest[summary.sequence], np.abs(summary.value))
        self.largest[summary.sequence] = largest
        self.nan += summary.nan
        self.infinite += summary.infinite
        tokens = summary.start + summary.token
        self._take(
            Peaks(summary.value, tokens, summary.channel, summary.input, summary.input_channel)
        )

    def merge(self, other: ExpertMagnitudes) -> None:
        """Add another accumulator of the same layer."""
        self.routed += other.routed
        self.largest = np.fmax(self.largest, other.largest)
        self.nan += other.nan
        self.infinite += other.infinite
        self._take(other._peaks)

    def spike(self, expert: int) -> Spike | None:
        """Return the largest output of an expert with its input; None if it has none."""
        if self.tokens[expert] < 0:
            return None
        return Spike(
            row=int(self.channels[expert]),
            column=int(self.input_channels[expert]),
            output=float(self.values[expert]),
            input=float(self.inputs[expert]),
            token=int(self.tokens[expert]),
        )

    @property
    def _peaks(self) -> Peaks:
        return Peaks(self.values, self.tokens, self.channels, self.inputs, self.input_channels)

    def _take(self, peaks: Peaks) -> None:
        candidates = Peaks(
            *(
                np.concatenate(pair)
                for pair in zip(vars(self._peaks).values(), vars(peaks).values(), strict=True)
            )
        )
        experts = np.tile(np.arange(self.experts), 2)
        largest = largest_of_each(self.experts, experts, candidates)
        self.values, self.tokens, self.channels = largest.values, largest.tokens, largest.channels
        self.inputs, self.input_channels = largest.inputs, largest.input_channels


@dataclass(frozen=True)
class Peaks:
    """Largest outputs with their tokens and channels, and the largest inputs of the same tokens."""

    values: Float32
    tokens: Int64
    channels: Int64
    inputs: Float32
    input_channels: Int64


def largest_of_each(number: int, experts: Int64, peaks: Peaks) -> Peaks:
    """Return, for each expert, the peak with the finite value largest in |x|.

    An expert without a finite value has NaN and -1. Among equals, the earliest token comes first,
    then the lowest channel.

    Args:
        number: number of experts.
        experts: the expert of each peak.
        peaks: the candidates.
    """
    finite = np.flatnonzero(np.isfinite(peaks.values))
    order = finite[
        np.lexsort(
            (
                peaks.channels[finite],
                peaks.tokens[finite],
                -np.abs(peaks.values[finite]),
                experts[finite],
            )
        )
    ]
    present, first = np.unique(experts[order], return_index=True)

    def best(values: Any, missing: float) -> Any:
        by_expert = np.full(number, missing, values.dtype)
        by_expert[present] = values[order[first]]
        return by_expert

    return Peaks(
        best(peaks.values, np.nan),
        best(peaks.tokens, -1),
        best(peaks.channels, -1),
        best(peaks.inputs, np.nan),
        best(peaks.input_channels, -1),
    )
