"""The table of token norms."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import LAYER, NO_INTERVALS, SITE, WHERE, Column, Table

TOKEN_NORMS = Table(
    "token_norms",
    "Per layer the tokens of the largest L2 norm (detection.token_norms.top of them), descending; "
    f"quantiles over all tokens are in layer_measures. {NO_INTERVALS}",
    (
        SITE,
        LAYER,
        Column("rank", "int32", "1 for the token of the largest norm.", "index"),
        *WHERE,
        Column("norm", "float64", "L2 norm over channels.", "activation"),
        Column(
            "median",
            "float64",
            "Median norm over all tokens of the layer that have a finite value, the lower of the "
            "two middle ones; rounded, relative error <= 2^-9.",
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
