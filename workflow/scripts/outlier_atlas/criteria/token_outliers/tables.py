"""The table of token outliers."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import LARGEST_OF_TOKEN, NO_INTERVALS, Column, Table

TOKEN_OUTLIERS = Table(
    "token_outliers",
    f"One row for each token outlier, by layer and token. {NO_INTERVALS}",
    (
        *LARGEST_OF_TOKEN,
        Column(
            "median",
            "float64",
            "Median of the largest |x| of each token, over the tokens of the sequence in that "
            "layer with a finite value; the lower of the two middle values, exact.",
            "activation",
        ),
        Column("median_ratio", "float64", "|value| / median.", "ratio"),
    ),
)

DESCRIPTION = Description(
    "token_outliers",
    (TOKEN_OUTLIERS,),
    ("token_outliers",),
    finding="tokens",
)
