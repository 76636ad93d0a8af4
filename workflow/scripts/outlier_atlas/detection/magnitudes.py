"""The tables of the largest values: of layers, of channels and of experts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from outlier_atlas.criteria.magnitudes.tables import CHANNEL_MAXIMA
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.detection.columns import (
    Columns,
    end_columns,
    interval_columns,
    located,
    or_null,
    places,
)
from outlier_atlas.detection.exclusion import Exclusion
from outlier_atlas.detection.scan import Place
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.experts import ExpertMagnitudes
from outlier_atlas.statistics.magnitudes import Magnitudes
from outlier_atlas.statistics.one_pass import TOP


def layer_magnitude_columns(
    magnitudes: Mapping[Place, Magnitudes], tokens: TokenStore, bootstrap: Bootstrap
) -> Columns:
    """The table of the largest values of each site and layer."""
    each = list(magnitudes.values())
    tops = [[*m.top, *[None] * TOP][:TOP] for m in each]
    channels = [m.largest_channel for m in each]
    largest = [-1 if c is None else int(m.tokens[c]) for m, c in zip(each, channels, strict=True)]
    return {
        "site": [site for site, _ in magnitudes],
        "layer": [layer for _, layer in magnitudes],
        **{f"top{rank + 1}": [top[rank] for top in tops] for rank in range(TOP)},
        "median": or_null([m.median for m in each]),
        "value": [
            None if c is None else float(m.maxima[c]) for m, c in zip(each, channels, strict=True)
        ],
        "channel": channels,
        **located(tokens, largest),
        "values": [m.values for m in each],
        "nan": [m.nan for m in each],
        "infinite": [m.infinite for m in each],
        **interval_columns("top1", [bootstrap.maxima(m.of_sequences) for m in each]),
    }


def channel_maximum_columns(
    magnitudes: Mapping[Place, Magnitudes], tokens: TokenStore, bootstrap: Bootstrap
) -> Columns:
    """The table of the largest value of each channel."""
    if not magnitudes:
        return {column.name: [] for column in CHANNEL_MAXIMA.columns}
    widths = [m.channels for m in magnitudes.values()]
    ends = np.hstack([m.largest.intervals(bootstrap) for m in magnitudes.values()])
    return {
        "site": np.repeat([site for site, _ in magnitudes], widths),
        "layer": np.repeat([layer for _, layer in magnitudes], widths),
        "channel": np.concatenate([np.arange(width) for width in widths]),
        "value": or_null(np.concatenate([m.maxima for m in magnitudes.values()])),
        **places(tokens, np.concatenate([m.tokens for m in magnitudes.values()])),
        **end_columns("value", (ends[0], ends[1])),
    }


def expert_magnitude_columns(
    layers: Mapping[int, ExpertMagnitudes],
    tokens: TokenStore,
    exclusion: Exclusion,
    min_tokens: int,
    bootstrap: Bootstrap,
) -> Columns:
    """The table of the largest output of each routed expert."""
    each = [(layer, m, expert) for layer, m in layers.items() for expert in range(m.experts)]
    of_sequences = [m.routed[:, expert] for _, m, expert in each]
    routed = [int(counts.sum()) for counts in of_sequences]
    kept = exclusion.kept_of_sequences(tokens) if layers else np.zeros(0, np.int64)
    all_kept = int(kept.sum())
    largest = [int(m.tokens[expert]) for _, m, expert in each]
    channels = [int(m.channels[expert]) for _, m, expert in each]
    return {
        "layer": [layer for layer, _, _ in each],
        "expert": [expert for _, _, expert in each],
        "tokens": routed,
        "token_share": [count / all_kept if all_kept else None for count in routed],
        "enough_tokens": [count >= min_tokens for count in routed],
        "value": or_null([m.values[expert] for _, m, expert in each]),
        "channel": [None if channel < 0 else channel for channel in channels],
        **located(tokens, largest),
        "nan": [int(m.nan[expert]) for _, m, expert in each],
        "infinite": [int(m.infinite[expert]) for _, m, expert in each],
        **interval_columns(
            "token_share", [bootstrap.ratios(counts, kept) for counts in of_sequences]
        ),
        **interval_columns(
            "value", [bootstrap.maxima(m.largest[:, expert]) for _, m, expert in each]
        ),
    }
