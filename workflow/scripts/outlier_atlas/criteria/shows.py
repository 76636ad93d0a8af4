"""The registry of what the report shows, in the order of the page."""

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
"""The sections before those on ablation and on the comparison with another run."""

BEHIND: tuple[Show, ...] = (
    LayerMeasuresShow(),
    QuantizationErrorShow(),
    PerplexityShow(),
)
"""The sections after them."""

ALL: tuple[Show, ...] = (*SHOWS, *BEHIND)
"""How the report shows every criterion and measure."""

COMPARED: tuple[Show, ...] = (
    PerplexityShow(),
    MassiveActivationsShow(),
    MagnitudesShow(),
    AttentionSinksShow(),
)
"""What is compared with another run, in the order of that section."""

TITLES = {show.description.name: show.title for show in SHOWS if show.description.finding}
"""The names of the criteria in the list of what was not measured, and in the comparison of runs."""
