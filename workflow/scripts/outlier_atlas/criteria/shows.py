"""The registry of presentations in the report, in the order of the page."""

from __future__ import annotations

from outlier_atlas.criteria.attention_sinks.show import AttentionSinksShow
from outlier_atlas.criteria.experts.show import ExpertsShow
from outlier_atlas.criteria.layer_measures.show import LayerMeasuresShow
from outlier_atlas.criteria.llm_int8.show import LlmInt8Show
from outlier_atlas.criteria.magnitudes.show import MagnitudesShow
from outlier_atlas.criteria.massive_activations.show import MassiveActivationsShow
from outlier_atlas.criteria.perplexity.show import PerplexityShow
from outlier_atlas.criteria.quantization_error.show import QuantizationErrorShow
from outlier_atlas.criteria.show import Show
from outlier_atlas.criteria.super_experts.show import SuperExpertsShow
from outlier_atlas.criteria.super_weights.show import SuperWeightsShow
from outlier_atlas.criteria.systematic_outliers.show import SystematicOutliersShow
from outlier_atlas.criteria.token_outliers.show import TokenOutliersShow

SHOWS: tuple[Show, ...] = (
    MagnitudesShow(),
    MassiveActivationsShow(),
    AttentionSinksShow(),
    LlmInt8Show(),
    SuperWeightsShow(),
    SuperExpertsShow(),
    SystematicOutliersShow(),
    TokenOutliersShow(),
    ExpertsShow(),
)
"""Presentations whose sections precede the sections on ablation and on another run."""

BEHIND: tuple[Show, ...] = (
    LayerMeasuresShow(),
    QuantizationErrorShow(),
    PerplexityShow(),
)
"""Presentations whose sections follow the sections on ablation and on another run."""

ALL: tuple[Show, ...] = (*SHOWS, *BEHIND)
"""The presentations of all criteria and measures."""

COMPARED: tuple[Show, ...] = (
    PerplexityShow(),
    MassiveActivationsShow(),
    MagnitudesShow(),
    AttentionSinksShow(),
)
"""Presentations that take part in the comparison of runs, in the order of that section."""

TITLES = {show.description.name: show.title for show in SHOWS if show.description.finding}
"""Names of the criteria for the list of unmeasured criteria and for the comparison of runs."""
