"""The table of token norms."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import LAYER, NO_INTERVALS, SITE, WHERE, Column, Table

TOKEN_NORMS = Table(
    "token_norms",
    "The detection.token_norms.top tokens with the largest L2 norms of each layer, descending. "
    f"Quantiles over all tokens are in layer_measures. {NO_INTERVALS}",
    (
        SITE,
        LAYER,
        Column("rank", "int32", "Rank; 1 for the token with the largest norm.", "index"),
        *WHERE,
        Column("norm", "float64", "L2 norm over channels.", "activation"),
        Column(
            "median",
            "float64",
            "Median norm over all tokens of the layer with a finite value, the lower of the two "
            "middle norms; rounded, relative error <= 2^-9.",
            "activation",
        ),
        Column("median_ratio", "float64", "norm / median.", "ratio"),
    ),
)

DESCRIPTION = Description(
    "token_norms",
    (TOKEN_NORMS,),
    ("token_norms",),
)
