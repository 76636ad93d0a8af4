"""The table of super experts."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import CHANNEL, EXPERT, LAYER, WHERE, Column, Table, intervals

SUPER_EXPERTS = Table(
    "super_experts",
    "A row for each super expert, by layer and expert.",
    (
        LAYER,
        EXPERT,
        CHANNEL,
        *WHERE,
        Column("value", "float32", "Its largest |down_proj output|, signed.", "activation"),
        Column(
            "quantile",
            "float64",
            "The quantile, over all experts that saw a token, that |value| is above.",
            "activation",
        ),
        Column("largest_share", "float64", "|value| / the largest of all experts.", "ratio"),
        Column(
            "growth",
            "float64",
            "Largest |x| of the layer's residual stream over that of the measured layer before; "
            "empty for the first.",
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
