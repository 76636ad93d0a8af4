"""Which heads of a layer make a sink of one of a sequence's first tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.statistics.codes import Float32, Float64, Int64


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
        run_sequences: number of sequences of the run.
        sequences: (T,): sequences that have this position.
        values: (T, head): those of them whose value is a number.
        sinks: (T, head): those in which it is a sink.
        sums: (T, head): of the values, float64.
        first: (sequence, head): what the first token receives; NaN where it has no value.
        of_sequences: (3, sequence, T): `values`, `sinks` and `sums` of each over its heads.
        largest_of_sequences: (sequence,): the largest value of each; NaN where there is none.
        largest: the largest value, the first of equals; None where there is none.
        nan: values that are NaN; they are no sinks and left out of all other numbers.
    """

    heads: int
    tokens: int
    threshold: float
    run_sequences: int
    sequences: Int64 = field(init=False)
    values: Int64 = field(init=False)
    sinks: Int64 = field(init=False)
    sums: Float64 = field(init=False)
    first: Float32 = field(init=False)
    of_sequences: Float64 = field(init=False)
    largest_of_sequences: Float32 = field(init=False)
    largest: Received | None = None
    nan: int = 0

    def __post_init__(self) -> None:
        self.sequences = np.zeros(self.tokens, np.int64)
        self.values, self.sinks = np.zeros((2, self.tokens, self.heads), np.int64)
        self.sums = np.zeros((self.tokens, self.heads))
        self.first = np.full((self.run_sequences, self.heads), np.nan, np.float32)
        self.of_sequences = np.zeros((3, self.run_sequences, self.tokens))
        self.largest_of_sequences = np.full(self.run_sequences, np.nan, np.float32)

    def update(self, values: Float32, sequences: Int64, positions: Int64, start: int) -> None:
        """Take a tile.

        Args:
            values: (token, head); what lies beyond position T is not looked at.
            sequences, positions: (token,): the sequence of each token, and its place in it.
            start: index of the first token along the store's token axis.
        """
        rows = np.flatnonzero(positions < self.tokens)
        if not len(rows):
            return
        received, owners, places = values[rows], sequences[rows], positions[rows]
        there = np.isfinite(received)
        self.nan += int(np.count_nonzero(~there))
        np.add.at(self.sequences, places, 1)
        np.add.at(self.values, places, there)
        # In float32, as it was measured: 0.3 and its float32 differ.
        sinks = received > np.float32(self.threshold)
        numbers = np.where(there, received, 0).astype(np.float64)
        np.add.at(self.sinks, places, sinks)
        np.add.at(self.sums, places, numbers)
        self.first[owners[places == 0]] = np.where(there, received, np.nan)[places == 0]
        self.of_sequences[:, owners, places] = [n.sum(axis=1) for n in (there, sinks, numbers)]
        largest = np.where(there, received, np.nan)
        np.fmax.at(self.largest_of_sequences, owners, np.fmax.reduce(largest, axis=1))
        self._take_largest(np.where(there, received, -1), start + rows)

    def mean(self) -> Float64:
        """Mean over sequences of what a position receives, (T, head); NaN where none has it."""
        return share(self.sums, self.values)

    def _take_largest(self, received: Float32, tokens: Int64) -> None:
        row, head = np.unravel_index(received.argmax(), received.shape)
        value = float(received[row, head])
        if value >= 0 and (self.largest is None or value > self.largest.value):
            self.largest = Received(value, int(head), int(tokens[row]))


def share(part: NDArray[Any], whole: Int64) -> Float64:
    """part / whole; NaN where the whole is 0."""
    made: Float64 = part / np.where(whole, whole, np.nan)
    return made
