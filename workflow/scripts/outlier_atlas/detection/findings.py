"""What the accumulators hold, as the columns of the run's tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike

from outlier_atlas import tables
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.detection.criteria import (
    ATTENTION_SINKS,
    LLM_INT8,
    MASSIVE_ACTIVATIONS,
    Criterion,
)
from outlier_atlas.detection.scan import Scan
from outlier_atlas.settings.detection import DetectionSettings, LlmInt8Settings
from outlier_atlas.statistics.experts import ExpertMagnitudes
from outlier_atlas.statistics.magnitudes import TOP, Magnitudes
from outlier_atlas.statistics.massive import MassiveActivation
from outlier_atlas.statistics.outlier_features import Feature, LayerShare, PositionShare
from outlier_atlas.store.layout import Target

Columns = dict[str, Any]
Massive = tuple[int, MassiveActivation]
"""A layer and a massive activation in it."""


def findings(
    scan: Scan,
    tokens: TokenStore,
    settings: DetectionSettings,
    criteria: Mapping[str, Criterion],
    sinks: int,
) -> Iterator[tuple[tables.Table, Columns]]:
    """Each table of a run with its columns; without rows where its criterion was not measured.

    Args:
        sinks: number of heads that sink on the first token, whose tables are made elsewhere.
    """
    int8 = settings.llm_int8
    features = scan.outlier_features.features() if scan.outlier_features else []
    massive = [
        (layer, activation)
        for layer, activations in sorted(scan.massive.items())
        for activation in activations.found()
    ]
    found = {
        LLM_INT8: sum(_is_outlier_feature(feature, int8) for feature in features),
        MASSIVE_ACTIVATIONS: len(massive),
        ATTENTION_SINKS: sinks,
    }
    site = settings.massive_activations.site
    yield tables.CRITERIA, _criteria(criteria, found)
    yield tables.LAYER_MAGNITUDES, _layer_magnitudes(scan.magnitudes, tokens)
    yield tables.CHANNEL_MAXIMA, _channel_maxima(scan.magnitudes, tokens)
    yield tables.LLM_INT8_FEATURES, _features(features, int8)
    yield tables.LLM_INT8_VARIANTS, _variants(features, int8, criteria[LLM_INT8].measured)
    yield tables.MASSIVE_ACTIVATIONS, _massive_activations(massive, site, tokens)
    yield tables.MASSIVE_CHANNELS, _massive_channels(massive, site, tokens)
    yield (
        tables.EXPERT_MAGNITUDES,
        _expert_magnitudes(scan.experts, tokens, settings.experts.min_tokens),
    )


def _criteria(criteria: Mapping[str, Criterion], found: Mapping[str, int]) -> Columns:
    return {
        "criterion": list(criteria),
        "measured": [c.measured for c in criteria.values()],
        "sites": [" ".join(c.sites) for c in criteria.values()],
        "missing_sites": [" ".join(c.missing) for c in criteria.values()],
        "findings": [found[name] if c.measured else None for name, c in criteria.items()],
        "definition": [c.definition for c in criteria.values()],
    }


def _layer_magnitudes(magnitudes: Mapping[Target, Magnitudes], tokens: TokenStore) -> Columns:
    each = list(magnitudes.values())
    tops = [[*m.top, *[None] * TOP][:TOP] for m in each]
    channels = [m.largest_channel for m in each]
    largest = [-1 if c is None else int(m.tokens[c]) for m, c in zip(each, channels, strict=True)]
    return {
        "site": [target.array for target in magnitudes],
        "layer": [target.layer for target in magnitudes],
        **{f"top{rank + 1}": [top[rank] for top in tops] for rank in range(TOP)},
        "median": or_null([m.median for m in each]),
        "value": [
            None if c is None else float(m.maxima[c]) for m, c in zip(each, channels, strict=True)
        ],
        "channel": channels,
        **places(tokens, largest),
        **token_columns(tokens, largest),
        "values": [m.values for m in each],
        "nan": [m.nan for m in each],
        "infinite": [m.infinite for m in each],
    }


def _channel_maxima(magnitudes: Mapping[Target, Magnitudes], tokens: TokenStore) -> Columns:
    if not magnitudes:
        return {column.name: [] for column in tables.CHANNEL_MAXIMA.columns}
    widths = [m.channels for m in magnitudes.values()]
    return {
        "site": np.repeat([target.array for target in magnitudes], widths),
        "layer": np.repeat([target.layer for target in magnitudes], widths),
        "channel": np.concatenate([np.arange(width) for width in widths]),
        "value": or_null(np.concatenate([m.maxima for m in magnitudes.values()])),
        **places(tokens, np.concatenate([m.tokens for m in magnitudes.values()])),
    }


def _features(features: Sequence[Feature], settings: LlmInt8Settings) -> Columns:
    by, over = settings.position_share_by, settings.layer_share_over
    ordered = sorted(
        features,
        key=lambda f: (
            not _is_outlier_feature(f, settings),
            -f.layer_share[over],
            -f.position_share[by],
            f.channel,
        ),
    )
    quartiles = ("quartile1", "median", "quartile3")
    return {
        "channel": [f.channel for f in ordered],
        "outlier_feature": [_is_outlier_feature(f, settings) for f in ordered],
        "layers": [f.layers for f in ordered],
        "tensors": [f.tensors for f in ordered],
        **{
            f"layer_share_{name}": [f.layer_share[name] for f in ordered]
            for name in get_args(LayerShare)
        },
        **{
            f"position_share_{name}": [f.position_share[name] for f in ordered]
            for name in get_args(PositionShare)
        },
        "outlier_values": [f.outlier_values for f in ordered],
        "positive_share": [f.positive_share for f in ordered],
        "sidedness": ["one-sided" if f.one_sided else "two-sided" for f in ordered],
        **{name: [f.quartiles[i] for f in ordered] for i, name in enumerate(quartiles)},
        "value": [f.value for f in ordered],
    }


def _variants(features: Sequence[Feature], settings: LlmInt8Settings, measured: bool) -> Columns:
    configured = (settings.layer_share_over, settings.position_share_by)
    readings = [
        (over, by) for over in get_args(LayerShare) for by in get_args(PositionShare) if measured
    ]
    passing = [
        [
            feature.channel
            for feature in features
            if feature.passes(settings.layer_share, settings.position_share, over, by)
        ]
        for over, by in readings
    ]
    return {
        "layer_share_over": [over for over, _ in readings],
        "position_share_by": [by for _, by in readings],
        "configured": [reading == configured for reading in readings],
        "outlier_features": [len(channels) for channels in passing],
        "channels": [" ".join(map(str, channels)) for channels in passing],
    }


def _is_outlier_feature(feature: Feature, settings: LlmInt8Settings) -> bool:
    return feature.passes(
        settings.layer_share,
        settings.position_share,
        settings.layer_share_over,
        settings.position_share_by,
    )


def _massive_activations(massive: Sequence[Massive], site: str, tokens: TokenStore) -> Columns:
    indices = [activation.token for _, activation in massive]
    return {
        "site": [site] * len(massive),
        "layer": [layer for layer, _ in massive],
        "channel": [activation.channel for _, activation in massive],
        **places(tokens, indices),
        **token_columns(tokens, indices),
        "value": [activation.value for _, activation in massive],
        "tensor_median": [activation.tensor_median for _, activation in massive],
        "tensor_median_ratio": [_ratio(a.value, a.tensor_median) for _, a in massive],
        "token_median": [activation.token_median for _, activation in massive],
        "token_median_ratio": [_ratio(a.value, a.token_median) for _, a in massive],
    }


def _massive_channels(massive: Sequence[Massive], site: str, tokens: TokenStore) -> Columns:
    ordered = sorted(massive, key=lambda m: (m[0], m[1].channel, m[1].token))
    groups = [
        (place, [activation for _, activation in members])
        for place, members in groupby(ordered, key=lambda m: (m[0], m[1].channel))
    ]
    largest = [max(members, key=lambda a: abs(a.value)) for _, members in groups]
    each = [places(tokens, [a.token for a in members]) for _, members in groups]
    of_largest = [a.token for a in largest]
    where = places(tokens, of_largest)
    return {
        "site": [site] * len(groups),
        "layer": [layer for (layer, _), _ in groups],
        "channel": [channel for (_, channel), _ in groups],
        "massive_activations": [len(members) for _, members in groups],
        "sequences": [len(set(place["sequence"])) for place in each],
        "first_position_share": [
            sum(position == 0 for position in place["position"]) / len(place["position"])
            for place in each
        ],
        "value": [a.value for a in largest],
        "tensor_median_ratio": [_ratio(a.value, a.tensor_median) for a in largest],
        "sequence": where["sequence"],
        "position": where["position"],
        **token_columns(tokens, of_largest),
    }


def _expert_magnitudes(
    layers: Mapping[int, ExpertMagnitudes], tokens: TokenStore, min_tokens: int
) -> Columns:
    each = [(layer, m, expert) for layer, m in layers.items() for expert in range(m.experts)]
    routed = [int(m.routed[expert]) for _, m, expert in each]
    largest = [int(m.tokens[expert]) for _, m, expert in each]
    channels = [int(m.channels[expert]) for _, m, expert in each]
    return {
        "layer": [layer for layer, _, _ in each],
        "expert": [expert for _, _, expert in each],
        "tokens": routed,
        "token_share": [count / tokens.tokens for count in routed],
        "enough_tokens": [count >= min_tokens for count in routed],
        "value": or_null([m.values[expert] for _, m, expert in each]),
        "channel": [None if channel < 0 else channel for channel in channels],
        **places(tokens, largest),
        **token_columns(tokens, largest),
        "nan": [int(m.nan[expert]) for _, m, expert in each],
        "infinite": [int(m.infinite[expert]) for _, m, expert in each],
    }


def places(tokens: TokenStore, indices: ArrayLike) -> Columns:
    """Index, sequence and position of tokens; null where an index is -1."""
    index = np.asarray(indices, np.int64)
    sequence = np.searchsorted(tokens.sequence_starts, index, side="right") - 1
    position = index - tokens.sequence_starts[np.maximum(sequence, 0)]
    there = index >= 0
    return {
        "token_index": np.ma.masked_array(index, ~there).tolist(),
        "sequence": np.ma.masked_array(sequence, ~there).tolist(),
        "position": np.ma.masked_array(position, ~there).tolist(),
    }


def token_columns(tokens: TokenStore, indices: Sequence[int]) -> Columns:
    """Id and text of tokens; null where an index is -1."""
    there = [index for index in indices if index >= 0]
    texts = iter(tokens.token_text(there))
    return {
        "token_id": [int(tokens.token_ids[i]) if i >= 0 else None for i in indices],
        "token_text": [next(texts) if i >= 0 else None for i in indices],
    }


def or_null(values: Iterable[float]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _ratio(value: float, median: float) -> float:
    return abs(value) / median if median else float("inf")
