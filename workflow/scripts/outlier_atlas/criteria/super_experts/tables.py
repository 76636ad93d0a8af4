"""The table of super experts."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import CHANNEL, EXPERT, LAYER, WHERE, Column, Table, intervals

SUPER_EXPERTS = Table(
    "super_experts",
    "One row for each super expert, by layer and expert.",
    (
        LAYER,
        EXPERT,
        CHANNEL,
        *WHERE,
        Column(
            "value",
            "float32",
            "The expert's largest |down_proj output|, with its sign.",
            "activation",
        ),
        Column(
            "quantile",
            "float64",
            "The quantile that |value| exceeds, over all experts with a token.",
            "activation",
        ),
        Column(
            "largest_share",
            "float64",
            "|value| / largest |down_proj output| of all experts.",
            "ratio",
        ),
        Column(
            "growth",
            "float64",
            "Largest |x| at the site of massive activations over that of the previous measured "
            "layer; empty for the first measured layer.",
            "ratio",
        ),
        *intervals("value", unit="activation", signed=True),
        *intervals("largest_share", unit="ratio"),
    ),
)

DESCRIPTION = Description(
    "super_experts",
    (SUPER_EXPERTS,),
    ("super_experts", "massive_activations"),
    finding="experts",
)
