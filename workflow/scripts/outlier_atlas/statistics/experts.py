"""What the experts of a layer make of the tokens routed to them: how many, and the largest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from outlier_atlas.statistics.codes import Float32, Int64
from outlier_atlas.statistics.summary import Place
from outlier_atlas.statistics.super_weights import Spike


@dataclass(frozen=True)
class ExpertSummary:
    """What is known of a tile of `expert_out`, by expert; the counterpart of `Summary`.

    Attributes:
        sequence, start, tokens: its `Place`.
        routed: (expert,): tokens routed to it.
        nan, infinite: (expert,): tokens whose largest |x| is NaN or infinite.
        value: (expert,): finite, largest in |x|, with its sign; NaN where there is none.
        token, channel: (expert,): where it is, the token from the tile's first; -1 where there is
            none. Of equals the earliest token's, then the lowest channel.
        input, input_channel: (expert,): the largest input in |x| of the same token and expert, and
            its channel; NaN and -1 where there is no value.
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
    numbers: torch.Tensor, place: Place, experts: int, kept: NDArray[np.bool_] | None = None
) -> ExpertSummary:
    """The summary of a tile of `expert_out`.

    Args:
        numbers: (token, 5 x routed): the largest |down_proj output| with its sign in each of the
            experts that a token is routed to; which experts; the channels; the largest
            |down_proj input|; its channels.
        place: where it is.
        experts: number of routed experts of the layer.
        kept: (token,): the tokens that count; None where all do.
    """
    parts = np.split(numbers.float().cpu().numpy(), 5, axis=1)
    routed = parts[0].shape[1]
    rows: Int64 = np.arange(place.tokens) if kept is None else np.flatnonzero(kept)
    tokens = np.repeat(rows, routed)
    values, *others, inputs, input_channels = (part[rows].ravel() for part in parts)
    chosen, channels = (part.astype(np.int64) for part in others)
    peaks = Peaks(values, tokens, channels, inputs, input_channels.astype(np.int64))

    def count(of: Int64) -> Int64:
        return np.bincount(of, minlength=experts)

    return ExpertSummary(
        place.sequence,
        place.start,
        place.tokens,
        count(chosen),
        count(chosen[np.isnan(values)]),
        count(chosen[np.isinf(values)]),
        *vars(largest_of_each(experts, chosen, peaks)).values(),
    )


@dataclass
class ExpertMagnitudes:
    """Accumulates summaries of one layer; exact, in any order and split.

    Attributes:
        experts: number of routed experts of the layer.
        sequences: number of sequences of the run.
        routed: (sequence, expert): the tokens routed to it.
        largest: (sequence, expert): its largest |x|; NaN where there is none.
        values: per expert the finite value largest in |x|, with its sign; NaN where there is none.
        tokens: per expert the index of its token, the first of equals; -1 where there is none.
        channels: per expert its channel; -1 where there is none.
        inputs, input_channels: per expert the largest input of the same token, and its channel.
        nan, infinite: per expert the tokens whose largest |x| is NaN or infinite.
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
        """Take the summary of a tile."""
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
        """Take what another accumulator of the same layer has seen."""
        self.routed += other.routed
        self.largest = np.fmax(self.largest, other.largest)
        self.nan += other.nan
        self.infinite += other.infinite
        self._take(other._peaks)

    def spike(self, expert: int) -> Spike | None:
        """The largest output of an expert and its input; None where it has none."""
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
        both = Peaks(
            *(
                np.concatenate(pair)
                for pair in zip(vars(self._peaks).values(), vars(peaks).values(), strict=True)
            )
        )
        experts = np.tile(np.arange(self.experts), 2)
        found = largest_of_each(self.experts, experts, both)
        self.values, self.tokens, self.channels = found.values, found.tokens, found.channels
        self.inputs, self.input_channels = found.inputs, found.input_channels


@dataclass(frozen=True)
class Peaks:
    """Largest outputs, each with its token and channel, and the largest input of the same token
    with its channel."""

    values: Float32
    tokens: Int64
    channels: Int64
    inputs: Float32
    input_channels: Int64


def largest_of_each(number: int, experts: Int64, peaks: Peaks) -> Peaks:
    """Of each expert the peak with the finite value that is largest in |x|.

    NaN and -1 where there is none; the earliest token, then the lowest channel of equals.

    Args:
        number: of experts.
        experts: of each peak.
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
    found, first = np.unique(experts[order], return_index=True)

    def best(of_peaks: Any, none: float) -> Any:
        made = np.full(number, none, of_peaks.dtype)
        made[found] = of_peaks[order[first]]
        return made

    return Peaks(
        best(peaks.values, np.nan),
        best(peaks.tokens, -1),
        best(peaks.channels, -1),
        best(peaks.inputs, np.nan),
        best(peaks.input_channels, -1),
    )
