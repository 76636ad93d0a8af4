"""The tables of a run: their columns, units and definitions, and the files that they are in."""

from __future__ import annotations

from outlier_atlas.tables.activations import CHANNEL_MAXIMA, CRITERIA, LAYER_MAGNITUDES
from outlier_atlas.tables.experts import EXPERT_MAGNITUDES, SUPER_EXPERTS
from outlier_atlas.tables.files import left_out, read, refuse_other_definitions, streaming, write
from outlier_atlas.tables.losses import ABLATIONS, PERPLEXITY
from outlier_atlas.tables.massive_activations import MASSIVE_ACTIVATIONS, MASSIVE_CHANNELS
from outlier_atlas.tables.measures import LAYER_MEASURES, QUANTIZATION_ERROR
from outlier_atlas.tables.outlier_features import LLM_INT8_FEATURES, LLM_INT8_VARIANTS
from outlier_atlas.tables.parameters import parameters
from outlier_atlas.tables.sinks import (
    ATTENTION_SINK_HEADS,
    ATTENTION_SINK_POSITIONS,
    ATTENTION_SINKS,
)
from outlier_atlas.tables.table import Column, Table
from outlier_atlas.tables.tokens import (
    SUPER_WEIGHTS,
    SYSTEMATIC_OUTLIERS,
    TOKEN_NORMS,
    TOKEN_OUTLIERS,
)
from outlier_atlas.tables.weights import (
    SMOOTHQUANT_SCALES,
    WEIGHT_CHANNELS,
    WEIGHT_ERRORS,
    WEIGHT_TABLES,
    WEIGHTS,
)

__all__ = [
    "ABLATIONS",
    "ATTENTION_SINKS",
    "ATTENTION_SINK_HEADS",
    "ATTENTION_SINK_POSITIONS",
    "CHANNEL_MAXIMA",
    "CRITERIA",
    "EXPERT_MAGNITUDES",
    "LAYER_MAGNITUDES",
    "LAYER_MEASURES",
    "LLM_INT8_FEATURES",
    "LLM_INT8_VARIANTS",
    "MASSIVE_ACTIVATIONS",
    "MASSIVE_CHANNELS",
    "PERPLEXITY",
    "QUANTIZATION_ERROR",
    "SMOOTHQUANT_SCALES",
    "SUPER_EXPERTS",
    "SUPER_WEIGHTS",
    "SYSTEMATIC_OUTLIERS",
    "TABLES",
    "TOKEN_NORMS",
    "TOKEN_OUTLIERS",
    "WEIGHTS",
    "WEIGHT_CHANNELS",
    "WEIGHT_ERRORS",
    "WEIGHT_TABLES",
    "Column",
    "Table",
    "left_out",
    "parameters",
    "read",
    "refuse_other_definitions",
    "streaming",
    "write",
]

TABLES: tuple[Table, ...] = (
    CRITERIA,
    LAYER_MAGNITUDES,
    CHANNEL_MAXIMA,
    LLM_INT8_FEATURES,
    LLM_INT8_VARIANTS,
    MASSIVE_ACTIVATIONS,
    MASSIVE_CHANNELS,
    EXPERT_MAGNITUDES,
    SUPER_WEIGHTS,
    SUPER_EXPERTS,
    SYSTEMATIC_OUTLIERS,
    TOKEN_OUTLIERS,
    TOKEN_NORMS,
    LAYER_MEASURES,
    QUANTIZATION_ERROR,
    ATTENTION_SINKS,
    ATTENTION_SINK_HEADS,
    ATTENTION_SINK_POSITIONS,
    PERPLEXITY,
)
"""Those that the detection stage writes."""
