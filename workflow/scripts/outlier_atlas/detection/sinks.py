"""Attention sinks: from the site `attn_sink` to its tables, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from outlier_atlas import tables
from outlier_atlas.criteria.attention_sinks.tables import (
    ATTENTION_SINK_HEADS,
    ATTENTION_SINK_POSITIONS,
    ATTENTION_SINKS,
)
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.detection.columns import (
    Columns,
    interval_columns,
    located,
    or_null,
    sequences_and_positions,
)
from outlier_atlas.settings.sites import ATTN_SINK
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.sinks import AttentionSinks, share
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.layout import Layout, Target

Sinks = Mapping[int, AttentionSinks]
"""By layer; empty where `attn_sink` was not measured."""


def attention_sinks(arrays: Arrays, layout: Layout, tokens: TokenStore, threshold: float) -> Sinks:
    """Read `attn_sink` once, a chunk at a time.

    Raises:
        DamagedChunkError: a chunk is damaged or missing.
    """
    if ATTN_SINK not in layout.sites:
        return {}
    heads = layout.sites[ATTN_SINK]
    found = {}
    for layer in layout.layers:
        found[layer] = AttentionSinks(heads, layout.sink_tokens, threshold, tokens.sequences)
        for chunk in range(layout.chunks):
            start, stop = layout.chunk_range(chunk)
            sequences, positions = sequences_and_positions(tokens, np.arange(start, stop))
            values = arrays.read(Target(ATTN_SINK, layer), start, stop)
            found[layer].update(values, sequences, positions, start)
    return found


def sinking_heads(sinks: Sinks) -> int:
    """Heads of all layers whose mean attention to the first token is above the threshold."""
    return sum(_sinking(s) for s in sinks.values())


def _sinking(sinks: AttentionSinks) -> int:
    # The threshold in float32, as where each value is compared with it.
    return int((sinks.mean()[0] > float(np.float32(sinks.threshold))).sum())


def findings(
    sinks: Sinks, tokens: TokenStore, bootstrap: Bootstrap
) -> Iterator[tuple[tables.Table, Columns]]:
    """The tables of attention sinks; without rows where they were not measured."""
    parameters: dict[str, Any] = {"bootstrap": bootstrap.record()}
    for one in [*sinks.values()][:1]:
        parameters["attention_sinks"] = {"threshold": one.threshold}
    yield ATTENTION_SINKS.under(parameters), _layers(sinks, tokens, bootstrap)
    yield ATTENTION_SINK_HEADS.under(parameters), _heads(sinks, bootstrap)
    yield ATTENTION_SINK_POSITIONS.under(parameters), _positions(sinks, bootstrap)


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
    sunk = [
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
        **interval_columns("sink_share", [bootstrap.means(of_head) for of_head in sunk]),
    }


def _positions(sinks: Sinks, bootstrap: Bootstrap) -> Columns:
    each = list(sinks.values())
    sequences = each[0].sequences if each else np.zeros(0, np.int64)
    seen = np.flatnonzero(sequences)
    none = np.zeros((1, len(seen)), np.int64)
    values, counted, sums = (
        np.sum([*none, *(array[seen].sum(1) for array in arrays)], axis=0)
        for arrays in ([s.values for s in each], [s.sinks for s in each], [s.sums for s in each])
    )
    of_sequences = sum((s.of_sequences[:, :, seen] for s in each), np.zeros((3, 1, len(seen))))
    there, sunk, received = (numbers.T for numbers in of_sequences)
    return {
        "position": seen,
        "sequences": sequences[seen],
        "sink_metric": or_null(100 * share(counted, values)),
        "mean": or_null(share(sums, values)),
        **interval_columns("sink_metric", [*map(bootstrap.ratios, 100 * sunk, there)]),
        **interval_columns("mean", [*map(bootstrap.ratios, received, there)]),
    }
