"""Which heads of a layer make a sink of one of a sequence's first tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.statistics.codes import Float32, Int64


class Received(NamedTuple):
    """The attention that a token receives in a head: alpha_k of Gu et al. 2024."""

    value: float
    head: int
    token: int


@dataclass
class AttentionSinks:
    """Accumulates tiles of `attn_sink` of one layer, in the order of their tokens.

    Each position's values are added one sequence after the other, so that any cut of the tokens
    into tiles gives the same bits.

    Attributes:
        heads: number of query heads.
        tokens: T, the first tokens of each sequence that have a value.
        threshold: a token is a sink in a head where it receives more than this.
        sequences: (T,): sequences that have this position.
        values: (T, head): those of them whose value is a number.
        sinks: (T, head): those in which it is a sink.
        sums: (T, head): of the values, float64.
        largest: the largest value, the first of equals; None where there is none.
        nan: values that are NaN; they are no sinks and left out of all other numbers.
    """

    heads: int
    tokens: int
    threshold: float
    sequences: Int64 = field(init=False)
    values: Int64 = field(init=False)
    sinks: Int64 = field(init=False)
    sums: NDArray[np.float64] = field(init=False)
    largest: Received | None = None
    nan: int = 0

    def __post_init__(self) -> None:
        self.sequences = np.zeros(self.tokens, np.int64)
        self.values, self.sinks = np.zeros((2, self.tokens, self.heads), np.int64)
        self.sums = np.zeros((self.tokens, self.heads))

    def update(self, values: Float32, positions: Int64, start: int) -> None:
        """Take a tile.

        Args:
            values: (token, head); what lies beyond position T is not looked at.
            positions: (token,): of each token in its sequence.
            start: index of the first token along the store's token axis.
        """
        rows = np.flatnonzero(positions < self.tokens)
        if not len(rows):
            return
        received, places = values[rows], positions[rows]
        there = np.isfinite(received)
        self.nan += int(np.count_nonzero(~there))
        np.add.at(self.sequences, places, 1)
        np.add.at(self.values, places, there)
        # In float32, as it was measured: 0.3 and its float32 differ.
        np.add.at(self.sinks, places, received > np.float32(self.threshold))
        np.add.at(self.sums, places, np.where(there, received, 0).astype(np.float64))
        self._take_largest(np.where(there, received, -1), start + rows)

    def mean(self) -> NDArray[np.float64]:
        """Mean over sequences of what a position receives, (T, head); NaN where none has it."""
        return share(self.sums, self.values)

    def _take_largest(self, received: Float32, tokens: Int64) -> None:
        row, head = np.unravel_index(received.argmax(), received.shape)
        value = float(received[row, head])
        if value >= 0 and (self.largest is None or value > self.largest.value):
            self.largest = Received(value, int(head), int(tokens[row]))


def share(part: NDArray[Any], whole: Int64) -> NDArray[np.float64]:
    """part / whole; NaN where the whole is 0."""
    made: NDArray[np.float64] = part / np.where(whole, whole, np.nan)
    return made
