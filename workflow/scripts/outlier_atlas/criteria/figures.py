"""The registry of figures; importing it imports neither numpy, pyarrow nor matplotlib."""

from __future__ import annotations

from outlier_atlas.criteria.attention_sinks.figures import AttentionSinkHeads
from outlier_atlas.criteria.experts.figures import ExpertMaxima
from outlier_atlas.criteria.figure import FigureKind
from outlier_atlas.criteria.layer_measures.figures import Kurtosis
from outlier_atlas.criteria.magnitudes.figures import ChannelMaxima, Magnitudes
from outlier_atlas.criteria.quantization_error.figures import QuantizationErrors
from outlier_atlas.criteria.super_weights.figures import DownProjections

FIGURES: tuple[FigureKind, ...] = (
    Magnitudes(),
    ChannelMaxima(),
    ExpertMaxima(),
    AttentionSinkHeads(),
    Kurtosis(),
    DownProjections(),
    QuantizationErrors(),
)
"""All kinds of figures."""
