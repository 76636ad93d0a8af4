"""The registry of the tables of every criterion and measure, and the table of the criteria."""

from __future__ import annotations

from collections.abc import Iterator

from outlier_atlas.criteria.attention_sinks import tables as attention_sinks
from outlier_atlas.criteria.description import Description
from outlier_atlas.criteria.experts import tables as experts
from outlier_atlas.criteria.layer_measures import tables as layer_measures
from outlier_atlas.criteria.llm_int8 import tables as llm_int8
from outlier_atlas.criteria.magnitudes import tables as magnitudes
from outlier_atlas.criteria.massive_activations import tables as massive_activations
from outlier_atlas.criteria.perplexity import tables as perplexity
from outlier_atlas.criteria.quantization_error import tables as quantization_error
from outlier_atlas.criteria.super_experts import tables as super_experts
from outlier_atlas.criteria.super_weights import tables as super_weights
from outlier_atlas.criteria.systematic_outliers import tables as systematic_outliers
from outlier_atlas.criteria.token_norms import tables as token_norms
from outlier_atlas.criteria.token_outliers import tables as token_outliers
from outlier_atlas.tables.table import Column, Table

DESCRIPTIONS: tuple[Description, ...] = (
    magnitudes.DESCRIPTION,
    llm_int8.DESCRIPTION,
    massive_activations.DESCRIPTION,
    experts.DESCRIPTION,
    super_weights.DESCRIPTION,
    super_experts.DESCRIPTION,
    systematic_outliers.DESCRIPTION,
    token_outliers.DESCRIPTION,
    token_norms.DESCRIPTION,
    layer_measures.DESCRIPTION,
    quantization_error.DESCRIPTION,
    attention_sinks.DESCRIPTION,
    perplexity.DESCRIPTION,
)
"""All criteria and measures, in the order of the data dictionary."""

MOST_FIND = "tokens"
"""Noun for the findings of criteria that the column `findings` does not list by name."""


def _counted() -> Iterator[str]:
    """Yield a phrase for each kind of finding, with its criterion."""
    for described in DESCRIPTIONS:
        if described.finding not in ("", MOST_FIND):
            yield f"{described.finding} of {described.name}"
    yield f"{MOST_FIND} of the others"


CRITERIA = Table(
    "criteria",
    "Each criterion: whether it was measured, on which sites, and how many findings it has.",
    (
        Column("criterion", "string", "Name of the criterion, as in the configuration."),
        Column("measured", "bool", "Whether all of its sites were measured."),
        Column("sites", "string", "Sites of the criterion in this run, separated by spaces."),
        Column("missing_sites", "string", "Sites of the criterion that were not measured."),
        Column(
            "findings",
            "int64",
            f"Number of findings: {', '.join(_counted())}. "
            "Empty if the criterion was not measured, or could evaluate no layer.",
            "count",
        ),
        Column(
            "not_finite",
            "int64",
            "Number of NaN and infinite values at its sites, which all of its numbers exclude (for "
            "expert_out, the number of tokens with one in an expert's output). Empty if the "
            "criterion was not measured.",
            "count",
        ),
        Column(
            "layers_not_finite",
            "string",
            "Layers that the criterion could not evaluate, separated by spaces: one of its sites "
            "(llm_int8: all of its sites) has no finite value there. No share includes them.",
        ),
        Column("definition", "string", "The criterion in one sentence, with its thresholds."),
    ),
)

TABLES: tuple[Table, ...] = (
    CRITERIA,
    *(table for described in DESCRIPTIONS for table in described.tables),
)
"""All tables that the detection stage writes."""
