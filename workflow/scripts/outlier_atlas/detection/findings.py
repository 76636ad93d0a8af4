"""What the accumulators hold, as the columns of the run's tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import get_args

import numpy as np

from outlier_atlas import tables
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.detection.columns import (
    Columns,
    interval_columns,
    or_null,
    places,
    ratio,
    token_columns,
)
from outlier_atlas.detection.criteria import (
    ATTENTION_SINKS,
    LLM_INT8,
    MASSIVE_ACTIVATIONS,
    SUPER_EXPERTS,
    SUPER_WEIGHTS,
    SYSTEMATIC_OUTLIERS,
    TOKEN_OUTLIERS,
    Criterion,
)
from outlier_atlas.detection.measures import measure_columns, quantization_columns
from outlier_atlas.detection.scan import Place, Scan
from outlier_atlas.detection.super_findings import (
    ValuesOf,
    super_expert_columns,
    super_experts,
    super_weight_columns,
)
from outlier_atlas.detection.tokens import (
    norm_columns,
    systematic_columns,
    token_outlier_columns,
)
from outlier_atlas.settings.detection import (
    DetectionSettings,
    LayerShare,
    LlmInt8Settings,
    PositionShare,
)
from outlier_atlas.settings.sites import SUPER_WEIGHT_SITES
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.experts import ExpertMagnitudes
from outlier_atlas.statistics.magnitudes import Magnitudes
from outlier_atlas.statistics.massive import MassiveActivation
from outlier_atlas.statistics.outlier_features import (
    SHARES,
    Feature,
    OutlierFeatures,
)
from outlier_atlas.statistics.sequences import BySequence, Found
from outlier_atlas.statistics.summary import TOP
from outlier_atlas.statistics.super_weights import SuperWeight, super_weights

Massive = tuple[int, MassiveActivation]
"""A layer and a massive activation in it."""


def findings(
    scan: Scan,
    tokens: TokenStore,
    special_ids: Collection[int],
    settings: DetectionSettings,
    criteria: Mapping[str, Criterion],
    sinks: int,
    values_of: ValuesOf,
) -> Iterator[tuple[tables.Table, Columns]]:
    """Each table of a run with its columns; without rows where its criterion was not measured.

    Args:
        sinks: number of heads that sink on the first token, whose tables are made elsewhere.
        values_of: reads weights of down projections, by layer, row and column.
    """
    int8, site = settings.llm_int8, settings.massive_activations.site
    boot = settings.bootstrap
    bootstrap = Bootstrap(tokens.sequences, boot.resamples, boot.seed, boot.level)
    features = scan.outlier_features.features() if scan.outlier_features else []
    massive, systematic = _found(scan.massive), _found(scan.systematic)
    outliers = _found(scan.token_outliers)
    weights = _super_weights(scan, settings, criteria[SUPER_WEIGHTS])
    experts = super_experts(scan, settings) if criteria[SUPER_EXPERTS].measured else []
    found = {
        LLM_INT8: sum(_is_outlier_feature(feature, int8) for feature in features),
        MASSIVE_ACTIVATIONS: len(massive),
        SUPER_WEIGHTS: sum(weight.passes for weight in weights),
        SUPER_EXPERTS: len(experts),
        SYSTEMATIC_OUTLIERS: len(systematic),
        TOKEN_OUTLIERS: len(outliers),
        ATTENTION_SINKS: sinks,
    }
    yield tables.CRITERIA, _criteria(criteria, found)
    yield tables.LAYER_MAGNITUDES, _layer_magnitudes(scan.magnitudes, tokens, bootstrap)
    yield tables.CHANNEL_MAXIMA, _channel_maxima(scan.magnitudes, tokens)
    yield tables.LLM_INT8_FEATURES, _features(scan.outlier_features, features, int8, bootstrap)
    yield tables.LLM_INT8_VARIANTS, _variants(features, int8, criteria[LLM_INT8].measured)
    yield tables.MASSIVE_ACTIVATIONS, _massive_activations(massive, site, tokens)
    yield tables.MASSIVE_CHANNELS, _massive_channels(massive, site, tokens)
    yield (
        tables.EXPERT_MAGNITUDES,
        _expert_magnitudes(scan.experts, tokens, settings.experts.min_tokens),
    )
    yield tables.SUPER_WEIGHTS, super_weight_columns(weights, tokens, values_of)
    yield tables.SUPER_EXPERTS, super_expert_columns(experts, tokens)
    yield (
        tables.SYSTEMATIC_OUTLIERS,
        systematic_columns(systematic, settings.systematic_outliers.site, tokens, special_ids),
    )
    yield (
        tables.TOKEN_OUTLIERS,
        token_outlier_columns(outliers, settings.token_outliers.site, tokens),
    )
    yield tables.LAYER_MEASURES, measure_columns(scan, bootstrap)
    yield tables.QUANTIZATION_ERROR, quantization_columns(scan.quantization)
    yield tables.TOKEN_NORMS, norm_columns(scan.norms, settings.token_norms.site, tokens)


def _found(by_layer: Mapping[int, BySequence[Found]]) -> list[tuple[int, Found]]:
    return [(layer, one) for layer, each in sorted(by_layer.items()) for one in each.found()]


def _super_weights(
    scan: Scan, settings: DetectionSettings, criterion: Criterion
) -> list[SuperWeight]:
    if not criterion.measured:
        return []
    into, out = (
        {layer: m for (site, layer), m in scan.magnitudes.items() if site == wanted}
        for wanted in SUPER_WEIGHT_SITES
    )
    return super_weights(into, out, settings.super_weights.threshold)


def _criteria(criteria: Mapping[str, Criterion], found: Mapping[str, int]) -> Columns:
    return {
        "criterion": list(criteria),
        "measured": [c.measured for c in criteria.values()],
        "sites": [" ".join(c.sites) for c in criteria.values()],
        "missing_sites": [" ".join(c.missing) for c in criteria.values()],
        "findings": [found[name] if c.measured else None for name, c in criteria.items()],
        "definition": [c.definition for c in criteria.values()],
    }


def _layer_magnitudes(
    magnitudes: Mapping[Place, Magnitudes], tokens: TokenStore, bootstrap: Bootstrap
) -> Columns:
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
        **places(tokens, largest),
        **token_columns(tokens, largest),
        "values": [m.values for m in each],
        "nan": [m.nan for m in each],
        "infinite": [m.infinite for m in each],
        **interval_columns("top1", [bootstrap.maxima(m.of_sequences) for m in each]),
    }


def _channel_maxima(magnitudes: Mapping[Place, Magnitudes], tokens: TokenStore) -> Columns:
    if not magnitudes:
        return {column.name: [] for column in tables.CHANNEL_MAXIMA.columns}
    widths = [m.channels for m in magnitudes.values()]
    return {
        "site": np.repeat([site for site, _ in magnitudes], widths),
        "layer": np.repeat([layer for _, layer in magnitudes], widths),
        "channel": np.concatenate([np.arange(width) for width in widths]),
        "value": or_null(np.concatenate([m.maxima for m in magnitudes.values()])),
        **places(tokens, np.concatenate([m.tokens for m in magnitudes.values()])),
    }


def _features(
    accumulator: OutlierFeatures | None,
    features: Sequence[Feature],
    settings: LlmInt8Settings,
    bootstrap: Bootstrap,
) -> Columns:
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
        **_intervals(accumulator, ordered, bootstrap),
    }


def _intervals(
    accumulator: OutlierFeatures | None, features: Sequence[Feature], bootstrap: Bootstrap
) -> Columns:
    each = [accumulator.intervals(f.channel, bootstrap) for f in features if accumulator]
    columns: Columns = {}
    for name in SHARES:
        columns |= interval_columns(name, [intervals[name] for intervals in each])
    return columns


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
        "tensor_median_ratio": [ratio(a.value, a.tensor_median) for _, a in massive],
        "token_median": [activation.token_median for _, activation in massive],
        "token_median_ratio": [ratio(a.value, a.token_median) for _, a in massive],
    }


def _massive_channels(massive: Sequence[Massive], site: str, tokens: TokenStore) -> Columns:
    ordered = sorted(massive, key=lambda m: (m[0], m[1].channel, m[1].token))
    groups = [
        (place, [activation for _, activation in members])
        for place, members in groupby(ordered, key=lambda m: (m[0], m[1].channel))
    ]
    largest = [max(members, key=lambda a: abs(a.value)) for _, members in groups]
    of_members = [places(tokens, [a.token for a in members]) for _, members in groups]
    of_largest = [a.token for a in largest]
    where = places(tokens, of_largest)
    return {
        "site": [site] * len(groups),
        "layer": [layer for (layer, _), _ in groups],
        "channel": [channel for (_, channel), _ in groups],
        "massive_activations": [len(members) for _, members in groups],
        "sequences": [len(set(place["sequence"])) for place in of_members],
        "first_position_share": [
            sum(position == 0 for position in place["position"]) / len(place["position"])
            for place in of_members
        ],
        "value": [a.value for a in largest],
        "tensor_median_ratio": [ratio(a.value, a.tensor_median) for a in largest],
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
