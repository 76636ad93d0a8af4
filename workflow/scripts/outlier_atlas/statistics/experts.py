"""What the experts of a layer make of the tokens routed to them: how many, and the largest."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from outlier_atlas.statistics.codes import Float32, Int64
from outlier_atlas.statistics.summary import Place


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


def summarize_experts(
    numbers: torch.Tensor, place: Place, experts: int, kept: NDArray[np.bool_] | None = None
) -> ExpertSummary:
    """The summary of a tile of `expert_out`.

    Args:
        numbers: (token, 3 x routed): the largest |down_proj output| with its sign in each of the
            experts that a token is routed to; which experts; the channels.
        place: where it is.
        experts: number of routed experts of the layer.
        kept: (token,): the tokens that count; None where all do.
    """
    values, chosen, channels = np.split(numbers.float().cpu().numpy(), 3, axis=1)
    routed = values.shape[1]
    rows: Int64 = np.arange(len(values)) if kept is None else np.flatnonzero(kept)
    tokens = np.repeat(rows, routed)
    values = values[rows].ravel()
    chosen, channels = (part[rows].astype(np.int64).ravel() for part in (chosen, channels))

    def count(of: Int64) -> Int64:
        return np.bincount(of, minlength=experts)

    return ExpertSummary(
        place.sequence,
        place.start,
        place.tokens,
        count(chosen),
        count(chosen[np.isnan(values)]),
        count(chosen[np.isinf(values)]),
        *largest_of_each(experts, chosen, values, tokens, channels),
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
        nan, infinite: per expert the tokens whose largest |x| is NaN or infinite.
    """

    experts: int
    sequences: int
    routed: Int64 = field(init=False)
    largest: Float32 = field(init=False)
    values: Float32 = field(init=False)
    tokens: Int64 = field(init=False)
    channels: Int64 = field(init=False)
    nan: Int64 = field(init=False)
    infinite: Int64 = field(init=False)

    def __post_init__(self) -> None:
        self.routed = np.zeros((self.sequences, self.experts), np.int64)
        self.largest = np.full((self.sequences, self.experts), np.nan, np.float32)
        self.nan, self.infinite = np.zeros((2, self.experts), np.int64)
        self.tokens, self.channels = np.full((2, self.experts), -1, np.int64)
        self.values = np.full(self.experts, np.nan, np.float32)

    def update(self, summary: ExpertSummary) -> None:
        """Take the summary of a tile."""
        self.routed[summary.sequence] += summary.routed
        largest = np.fmax(self.largest[summary.sequence], np.abs(summary.value))
        self.largest[summary.sequence] = largest
        self.nan += summary.nan
        self.infinite += summary.infinite
        tokens = summary.start + summary.token
        self._take(np.arange(self.experts), summary.value, tokens, summary.channel)

    def merge(self, other: ExpertMagnitudes) -> None:
        """Take what another accumulator of the same layer has seen."""
        self.routed += other.routed
        self.largest = np.fmax(self.largest, other.largest)
        self.nan += other.nan
        self.infinite += other.infinite
        self._take(np.arange(self.experts), other.values, other.tokens, other.channels)

    def _take(self, experts: Int64, values: Float32, tokens: Int64, channels: Int64) -> None:
        found = largest_of_each(
            self.experts,
            np.concatenate([np.arange(self.experts), experts]),
            np.concatenate([self.values, values]),
            np.concatenate([self.tokens, tokens]),
            np.concatenate([self.channels, channels]),
        )
        self.values, self.tokens, self.channels = found


def largest_of_each(
    number: int, experts: Int64, values: Float32, tokens: Int64, channels: Int64
) -> tuple[Float32, Int64, Int64]:
    """Of each expert the finite value largest in |x|, its token and its channel.

    NaN, -1 and -1 where there is none; the earliest token, then the lowest channel of equals.
    """
    there = np.isfinite(values)
    experts, values = experts[there], values[there]
    tokens, channels = tokens[there], channels[there]
    order = np.lexsort((channels, tokens, -np.abs(values), experts))
    found, first = np.unique(experts[order], return_index=True)
    best = order[first]
    value, where = np.full(number, np.nan, np.float32), np.full((2, number), -1, np.int64)
    value[found], where[0, found], where[1, found] = values[best], tokens[best], channels[best]
    return value, where[0], where[1]
