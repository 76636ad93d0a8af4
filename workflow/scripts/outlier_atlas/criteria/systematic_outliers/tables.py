"""The table of systematic outliers."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import LARGEST_OF_TOKEN, NO_INTERVALS, Column, Table

SYSTEMATIC_OUTLIERS = Table(
    "systematic_outliers",
    "A row for each token whose largest |x| is far above the mean of |x|, by layer and token. "
    f"{NO_INTERVALS}",
    (
        *LARGEST_OF_TOKEN,
        Column(
            "mean",
            "float64",
            "Mean of |x| over all tokens and channels of its sequence in that layer, finite values "
            "alone; sums in float64, within 1e-11 of the exact mean.",
            "activation",
        ),
        Column("mean_ratio", "float64", "|value| / mean.", "ratio"),
        Column(
            "token_class",
            "string",
            "From its text without spaces: initial, at position 0; strong_delimiter, nothing but "
            "line breaks or . ! ? ; : characters; weakly_semantic, empty, other characters that "
            "are neither letter nor digit, or an English function word; other, all else, special "
            "tokens among them. The first that fits.",
        ),
    ),
)

DESCRIPTION = Description(
    "systematic_outliers",
    (SYSTEMATIC_OUTLIERS,),
    ("systematic_outliers",),
    finding="tokens",
)
