"""The table of systematic outliers."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import LARGEST_OF_TOKEN, NO_INTERVALS, Column, Table

SYSTEMATIC_OUTLIERS = Table(
    "systematic_outliers",
    "One row for each token whose largest |x| is far above the mean of |x|, by layer and token. "
    f"{NO_INTERVALS}",
    (
        *LARGEST_OF_TOKEN,
        Column(
            "mean",
            "float64",
            "Mean of the finite |x| over all tokens and channels of the sequence in that layer; "
            "summed in float64, within 1e-11 of the exact mean.",
            "activation",
        ),
        Column("mean_ratio", "float64", "|value| / mean.", "ratio"),
        Column(
            "token_class",
            "string",
            "The first class that applies to the token's text without spaces. initial: position 0. "
            "strong_delimiter: white space with a line break, or only the characters . ! ? ; : "
            "(any number of them). "
            "weakly_semantic: empty, no letter or digit, or an English function word. other: "
            "everything else, including special tokens.",
        ),
    ),
)

DESCRIPTION = Description(
    "systematic_outliers",
    (SYSTEMATIC_OUTLIERS,),
    ("systematic_outliers",),
    finding="tokens",
)
