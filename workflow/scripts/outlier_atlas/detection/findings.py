"""What the accumulators hold, as the columns of the run's tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from outlier_atlas import tables
from outlier_atlas.criteria.experts.tables import EXPERT_MAGNITUDES
from outlier_atlas.criteria.layer_measures.tables import LAYER_MEASURES
from outlier_atlas.criteria.llm_int8.tables import LLM_INT8_FEATURES, LLM_INT8_VARIANTS
from outlier_atlas.criteria.magnitudes.tables import CHANNEL_MAXIMA, LAYER_MAGNITUDES
from outlier_atlas.criteria.massive_activations.tables import MASSIVE_ACTIVATIONS, MASSIVE_CHANNELS
from outlier_atlas.criteria.quantization_error.tables import QUANTIZATION_ERROR
from outlier_atlas.criteria.super_experts.tables import SUPER_EXPERTS
from outlier_atlas.criteria.super_weights.tables import SUPER_WEIGHTS
from outlier_atlas.criteria.systematic_outliers.tables import SYSTEMATIC_OUTLIERS
from outlier_atlas.criteria.tables import CRITERIA
from outlier_atlas.criteria.token_norms.tables import TOKEN_NORMS
from outlier_atlas.criteria.token_outliers.tables import TOKEN_OUTLIERS
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.detection import criteria as names
from outlier_atlas.detection.columns import Columns
from outlier_atlas.detection.criteria import Criterion
from outlier_atlas.detection.exclusion import Exclusion
from outlier_atlas.detection.magnitudes import (
    channel_maximum_columns,
    expert_magnitude_columns,
    layer_magnitude_columns,
)
from outlier_atlas.detection.massive import massive_activation_columns, massive_channel_columns
from outlier_atlas.detection.measures import measure_columns, quantization_columns
from outlier_atlas.detection.not_finite import NotFinite, not_finite
from outlier_atlas.detection.outlier_features import (
    feature_columns,
    is_outlier_feature,
    variant_columns,
)
from outlier_atlas.detection.scan import Scan
from outlier_atlas.detection.sinks import Sinks, sinking_heads
from outlier_atlas.detection.super_findings import (
    ValuesOf,
    super_expert_columns,
    super_experts,
    super_weight_columns,
    super_weights,
)
from outlier_atlas.detection.tokens import norm_columns, systematic_columns, token_outlier_columns
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.sequences import BySequence, Found


def findings(
    scan: Scan,
    tokens: TokenStore,
    special_ids: Collection[int],
    settings: DetectionSettings,
    criteria: Mapping[str, Criterion],
    sunk: Sinks,
    bootstrap: Bootstrap,
    values_of: ValuesOf,
    dtype: str,
) -> Iterator[tuple[tables.Table, Columns]]:
    """Each table of a run with its columns; without rows where its criterion was not measured.

    Args:
        sunk: attention sinks, whose tables are made elsewhere.
        values_of: reads weights of down projections.
        dtype: that the run computes in.
    """
    int8, site = settings.llm_int8, settings.massive_activations.site
    features = scan.outlier_features.features() if scan.outlier_features else []
    massive, systematic = _found(scan.massive), _found(scan.systematic)
    outliers = _found(scan.token_outliers)
    weights = super_weights(scan, settings.super_weights, values_of, dtype)
    experts = super_experts(scan, settings) if criteria[names.SUPER_EXPERTS].measured else []
    found = {
        names.LLM_INT8: sum(is_outlier_feature(feature, int8) for feature in features),
        names.MASSIVE_ACTIVATIONS: len(massive),
        names.SUPER_WEIGHTS: sum(weight.passes is True for weight in weights),
        names.SUPER_EXPERTS: len(experts),
        names.SYSTEMATIC_OUTLIERS: len(systematic),
        names.TOKEN_OUTLIERS: len(outliers),
        names.ATTENTION_SINKS: sinking_heads(sunk),
    }
    yield CRITERIA, _criteria(criteria, found, not_finite(criteria, scan, sunk))
    yield LAYER_MAGNITUDES, layer_magnitude_columns(scan.magnitudes, tokens, bootstrap)
    yield CHANNEL_MAXIMA, channel_maximum_columns(scan.magnitudes, tokens, bootstrap)
    yield (
        LLM_INT8_FEATURES,
        feature_columns(scan.outlier_features, features, int8, scan.magnitudes, bootstrap),
    )
    yield LLM_INT8_VARIANTS, variant_columns(features, int8, criteria[names.LLM_INT8].measured)
    yield MASSIVE_ACTIVATIONS, massive_activation_columns(massive, site, tokens)
    yield MASSIVE_CHANNELS, massive_channel_columns(massive, site, tokens, bootstrap)
    yield (
        EXPERT_MAGNITUDES,
        expert_magnitude_columns(
            scan.experts, tokens, Exclusion.of(settings.exclude, special_ids),
            settings.experts.min_tokens, bootstrap,
        ),
    )  # fmt: skip
    yield SUPER_WEIGHTS, super_weight_columns(weights, tokens, scan, bootstrap)
    yield SUPER_EXPERTS, super_expert_columns(experts, tokens, scan, bootstrap)
    yield (
        SYSTEMATIC_OUTLIERS,
        systematic_columns(systematic, settings.systematic_outliers.site, tokens, special_ids),
    )
    yield (
        TOKEN_OUTLIERS,
        token_outlier_columns(outliers, settings.token_outliers.site, tokens),
    )
    yield LAYER_MEASURES, measure_columns(scan, bootstrap)
    yield QUANTIZATION_ERROR, quantization_columns(scan.quantization, bootstrap)
    yield TOKEN_NORMS, norm_columns(scan.norms, settings.token_norms.site, tokens)


def _found(by_layer: Mapping[int, BySequence[Found]]) -> list[tuple[int, Found]]:
    return [(layer, one) for layer, each in sorted(by_layer.items()) for one in each.found()]


def _criteria(
    criteria: Mapping[str, Criterion],
    found: Mapping[str, int],
    left_out: Mapping[str, NotFinite],
) -> Columns:
    looked = {name for name, what in left_out.items() if not what.all_layers}
    return {
        "criterion": list(criteria),
        "measured": [c.measured for c in criteria.values()],
        "sites": [" ".join(c.sites) for c in criteria.values()],
        "missing_sites": [" ".join(c.missing) for c in criteria.values()],
        "findings": [found[name] if name in looked else None for name in criteria],
        "not_finite": [left_out[n].values if n in left_out else None for n in criteria],
        "layers_not_finite": [
            " ".join(map(str, left_out[n].layers)) if n in left_out else "" for n in criteria
        ],
        "definition": [c.definition for c in criteria.values()],
    }
