"""Attention sinks among the first tokens of sequences (Gu et al. 2024), by head."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.criteria.attention_sinks.tables import (
    ATTENTION_SINK_HEADS,
    ATTENTION_SINK_POSITIONS,
    ATTENTION_SINKS,
    DESCRIPTION,
)
from outlier_atlas.criteria.columns import (
    Columns,
    interval_columns,
    located,
    or_null,
    sequences_and_positions,
)
from outlier_atlas.criteria.measure import (
    Context,
    CriterionMeasure,
    Finite,
    Measures,
)
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.section import exactly
from outlier_atlas.settings.sites import ATTN_SINK
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.codes import Float32, Float64, Int64
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.layout import Target
from outlier_atlas.tables.table import Table


class AttentionSinksMeasure(CriterionMeasure):
    """Attention sinks, computed from the site `attn_sink`.

    No token is excluded, because the measure concerns attention among the first tokens.

    Attributes:
        of_layers: accumulator of each layer; empty if `attn_sink` was not measured.
    """

    description = DESCRIPTION
    excludes = False

    def __init__(self, context: Context, others: Measures) -> None:
        super().__init__(context, others)
        layout, threshold = context.layout, context.settings.attention_sinks.threshold
        self.of_layers = {
            layer: AttentionSinks(
                layout.sites[ATTN_SINK], layout.sink_tokens, threshold, context.sequences
            )
            for layer in self.layers
        }

    @classmethod
    def sites(cls, settings: DetectionSettings, measured: Collection[str]) -> tuple[str, ...]:
        return (ATTN_SINK,)

    @classmethod
    def definition(cls, settings: DetectionSettings, sink_tokens: int) -> str:
        return (
            "A token at position k is a sink in a head if it receives more than "
            f"{exactly(settings.attention_sinks.threshold)} of attention: the mean of A[i, k] over "
            "the queries k <= i < T, where T is "
            f"{sink_tokens or 'extraction.advanced.sink_tokens'} or the length of a shorter "
            "sequence; the sink metric is 100 times the share of sequences, layers and heads in "
            "which it is one (Gu et al. 2024, arXiv 2410.10781). A head sinks on the first token "
            "if its mean over the sequences is above the threshold. No token is left out of this."
        )

    def read(self, arrays: Arrays) -> None:
        layout, tokens = self.context.layout, self.context.tokens
        for layer, each in self.of_layers.items():
            for chunk in range(layout.chunks):
                start, stop = layout.chunk_range(chunk)
                sequences, positions = sequences_and_positions(tokens, np.arange(start, stop))
                values = arrays.read(Target(ATTN_SINK, layer), start, stop)
                each.update(values, sequences, positions, start)

    def finite(self) -> Iterable[Finite]:
        for layer, each in self.of_layers.items():
            yield Finite(ATTN_SINK, layer, each.nan, bool(each.values.any()))

    def findings(self) -> int:
        """Return the number of heads with a mean attention to token 0 above the threshold."""
        return sum(_sinking(each) for each in self.of_layers.values())

    def parameters(self, table: Table) -> dict[str, Any]:
        of_table = super().parameters(table)
        return of_table if self.of_layers else {"bootstrap": of_table["bootstrap"]}

    def tables(self) -> Iterator[tuple[Table, Columns]]:
        bootstrap = self.context.bootstrap
        yield ATTENTION_SINKS, _layers(self.of_layers, self.context.tokens, bootstrap)
        yield ATTENTION_SINK_HEADS, _heads(self.of_layers, bootstrap)
        yield ATTENTION_SINK_POSITIONS, _positions(self.of_layers, bootstrap)


class Received(NamedTuple):
    """The attention that a token receives in a head (alpha_k of Gu et al. 2024)."""

    value: float
    head: int
    token: int


@dataclass
class AttentionSinks:
    """An accumulator for tiles of `attn_sink` of one layer, in the order of their tokens.

    The values of a position are added sequence by sequence. Therefore every division of the tokens
    into tiles gives the same bits.

    Attributes:
        heads: number of query heads.
        tokens: number T of first tokens of each sequence that have a value.
        threshold: a token is a sink in a head in which it receives more attention than this.
        run_sequences: number of sequences of the run.
        sequences: number of sequences that contain each position, (T,).
        values: number of these sequences with a finite value, (T, head).
        sinks: number of these sequences in which the position is a sink, (T, head).
        sums: sums of the values in float64, (T, head).
        first: attention that the first token receives, (sequence, head); NaN without a value.
        of_sequences: `values`, `sinks` and `sums` of each sequence over heads, (3, sequence, T).
        largest_of_sequences: largest value of each sequence, (sequence,); NaN without a value.
        largest: the first of the largest values; None without a value.
        nan: number of NaN values. They are not sinks, and all other numbers exclude them.
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
        """Add a tile.

        Args:
            values: attention that each token receives, (token, head). Positions from T on are
                ignored.
            sequences: sequence of each token, (token,).
            positions: position of each token in its sequence, (token,).
            start: index of the first token along the store's token axis.
        """
        rows = np.flatnonzero(positions < self.tokens)
        if not len(rows):
            return
        received, owners, places = values[rows], sequences[rows], positions[rows]
        finite_values = np.isfinite(received)
        self.nan += int(np.count_nonzero(~finite_values))
        np.add.at(self.sequences, places, 1)
        np.add.at(self.values, places, finite_values)
        # Compare in float32, the dtype of the values: 0.3 differs from its float32 value.
        sinks = received > np.float32(self.threshold)
        numbers = np.where(finite_values, received, 0).astype(np.float64)
        np.add.at(self.sinks, places, sinks)
        np.add.at(self.sums, places, numbers)
        self.first[owners[places == 0]] = np.where(finite_values, received, np.nan)[places == 0]
        self.of_sequences[:, owners, places] = [
            n.sum(axis=1) for n in (finite_values, sinks, numbers)
        ]
        largest = np.where(finite_values, received, np.nan)
        np.fmax.at(self.largest_of_sequences, owners, np.fmax.reduce(largest, axis=1))
        self._take_largest(np.where(finite_values, received, -1), start + rows)

    def mean(self) -> Float64:
        """Return the mean attention to each position, (T, head); NaN without a value."""
        return share(self.sums, self.values)

    def _take_largest(self, received: Float32, tokens: Int64) -> None:
        row, head = np.unravel_index(received.argmax(), received.shape)
        value = float(received[row, head])
        if value >= 0 and (self.largest is None or value > self.largest.value):
            self.largest = Received(value, int(head), int(tokens[row]))


def share(part: NDArray[Any], whole: Int64) -> Float64:
    """Return part / whole; NaN if the whole is 0."""
    quotient: Float64 = part / np.where(whole, whole, np.nan)
    return quotient


Sinks = Mapping[int, AttentionSinks]
"""Accumulators by layer."""


def _sinking(sinks: AttentionSinks) -> int:
    # The threshold in float32, as in `update`.
    return int((sinks.mean()[0] > float(np.float32(sinks.threshold))).sum())


def _layers(sinks: Sinks, tokens: TokenStore, bootstrap: Bootstrap) -> Columns:
    each = list(sinks.values())
    metric = [float(100 * share(s.sinks[0].sum(), s.values[0].sum())) for s in each]
    largest = [s.largest.token if s.largest else -1 for s in each]
    return {
        "layer": list(sinks),
        "heads": [s.heads for s in each],
        "sequences": [int(s.sequences[0]) for s in each],
        "sink_metric": or_null(metric),
        "sink_heads": [_sinking(s) for s in each],
        "value": [s.largest.value if s.largest else None for s in each],
        "head": [s.largest.head if s.largest else None for s in each],
        **located(tokens, largest),
        "nan": [s.nan for s in each],
        **interval_columns(
            "sink_metric",
            [
                bootstrap.ratios(100 * s.of_sequences[1, :, 0], s.of_sequences[0, :, 0])
                for s in each
            ],
        ),
        **interval_columns("value", [bootstrap.maxima(s.largest_of_sequences) for s in each]),
    }


def _heads(sinks: Sinks, bootstrap: Bootstrap) -> Columns:
    each = list(sinks.values())
    received = [of_head for s in each for of_head in s.first.T]
    sink_counts = [
        np.where(np.isnan(of_head), np.nan, of_head > np.float32(s.threshold))
        for s in each
        for of_head in s.first.T
    ]
    return {
        "layer": [layer for layer, s in sinks.items() for _ in range(s.heads)],
        "head": [head for s in each for head in range(s.heads)],
        "mean": or_null([mean for s in each for mean in s.mean()[0]]),
        "sink_share": or_null([part for s in each for part in share(s.sinks[0], s.values[0])]),
        **interval_columns("mean", [bootstrap.means(of_head) for of_head in received]),
        **interval_columns("sink_share", [bootstrap.means(of_head) for of_head in sink_counts]),
    }


def _positions(sinks: Sinks, bootstrap: Bootstrap) -> Columns:
    each = list(sinks.values())
    sequences = each[0].sequences if each else np.zeros(0, np.int64)
    present = np.flatnonzero(sequences)
    none = np.zeros((1, len(present)), np.int64)
    values, counted, sums = (
        np.sum([*none, *(array[present].sum(1) for array in arrays)], axis=0)
        for arrays in ([s.values for s in each], [s.sinks for s in each], [s.sums for s in each])
    )
    of_sequences = sum(
        (s.of_sequences[:, :, present] for s in each), np.zeros((3, 1, len(present)))
    )
    finite_values, sink_counts, received = (numbers.T for numbers in of_sequences)
    return {
        "position": present,
        "sequences": sequences[present],
        "sink_metric": or_null(100 * share(counted, values)),
        "mean": or_null(share(sums, values)),
        **interval_columns(
            "sink_metric", [*map(bootstrap.ratios, 100 * sink_counts, finite_values)]
        ),
        **interval_columns("mean", [*map(bootstrap.ratios, received, finite_values)]),
    }
