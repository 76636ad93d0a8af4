"""The settings that the numbers of each table depend on; its Parquet file names them."""

from __future__ import annotations

from outlier_atlas import tables
from outlier_atlas.settings.detection import DetectionSettings

BLOCKS: dict[str, tuple[str, ...]] = {
    tables.CRITERIA.name: (
        "llm_int8", "massive_activations", "super_weights", "super_experts",
        "systematic_outliers", "token_outliers", "attention_sinks",
    ),
    tables.LLM_INT8_FEATURES.name: ("llm_int8",),
    tables.LLM_INT8_VARIANTS.name: ("llm_int8",),
    tables.MASSIVE_ACTIVATIONS.name: ("massive_activations",),
    tables.MASSIVE_CHANNELS.name: ("massive_activations",),
    tables.EXPERT_MAGNITUDES.name: ("experts",),
    tables.SUPER_WEIGHTS.name: ("super_weights",),
    tables.SUPER_EXPERTS.name: ("super_experts", "massive_activations"),
    tables.SYSTEMATIC_OUTLIERS.name: ("systematic_outliers",),
    tables.TOKEN_OUTLIERS.name: ("token_outliers",),
    tables.TOKEN_NORMS.name: ("token_norms",),
    tables.QUANTIZATION_ERROR.name: ("quantization_error",),
}  # fmt: skip
"""Of each table its blocks of the section `detection`, but for `exclude` and `bootstrap`."""


def with_parameters(table: tables.Table, settings: DetectionSettings) -> tables.Table:
    """A table with the settings that its numbers depend on."""
    blocks = BLOCKS.get(table.name, ())
    if table.has_intervals:
        blocks = (*blocks, "bootstrap")
    return table.under(settings.model_dump(mode="json", include=set(blocks)) if blocks else {})
