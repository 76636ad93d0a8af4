"""The registry of measures that the detection stage computes."""

from __future__ import annotations

from outlier_atlas.criteria.attention_sinks.measure import AttentionSinksMeasure
from outlier_atlas.criteria.experts.measure import ExpertsMeasure
from outlier_atlas.criteria.layer_measures.measure import LayerMeasuresMeasure
from outlier_atlas.criteria.llm_int8.measure import LlmInt8Measure
from outlier_atlas.criteria.magnitudes.measure import MagnitudesMeasure
from outlier_atlas.criteria.massive_activations.measure import MassiveActivationsMeasure
from outlier_atlas.criteria.measure import Measure
from outlier_atlas.criteria.perplexity.measure import PerplexityMeasure
from outlier_atlas.criteria.quantization_error.measure import QuantizationErrorMeasure
from outlier_atlas.criteria.super_experts.measure import SuperExpertsMeasure
from outlier_atlas.criteria.super_weights.measure import SuperWeightsMeasure
from outlier_atlas.criteria.systematic_outliers.measure import SystematicOutliersMeasure
from outlier_atlas.criteria.token_norms.measure import TokenNormsMeasure
from outlier_atlas.criteria.token_outliers.measure import TokenOutliersMeasure

MEASURES: tuple[type[Measure], ...] = (
    MagnitudesMeasure,
    LlmInt8Measure,
    MassiveActivationsMeasure,
    ExpertsMeasure,
    SuperWeightsMeasure,
    SuperExpertsMeasure,
    SystematicOutliersMeasure,
    TokenOutliersMeasure,
    TokenNormsMeasure,
    LayerMeasuresMeasure,
    QuantizationErrorMeasure,
    AttentionSinksMeasure,
    PerplexityMeasure,
)
"""All measures; a measure that depends on another one is listed after it."""
