"""The tables of magnitudes of activations."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import (
    CHANNEL,
    LAYER,
    POSITION,
    SEQUENCE,
    SITE,
    TOKEN_INDEX,
    WHERE,
    Column,
    Table,
    intervals,
)

LAYER_MAGNITUDES = Table(
    "layer_magnitudes",
    "The three largest |x| and the median of |x| over all tokens and channels, by site and layer.",
    (
        SITE,
        LAYER,
        Column("top1", "float32", "Largest |x| over all finite values of the layer.", "activation"),
        Column(
            "top2",
            "float32",
            "Second largest |x|, which is a different value, but may be as large. top2 and top3 "
            "have no intervals: in a draw that contains a sequence twice, the second largest value "
            "is the largest again.",
            "activation",
        ),
        Column("top3", "float32", "Third largest |x|.", "activation"),
        Column(
            "median",
            "float32",
            "Median of |x| over all tokens and channels of the layer, the lower of the two middle "
            "values. Exact if all values are bfloat16 numbers; otherwise rounded, relative error "
            "<= 2^-9.",
            "activation",
        ),
        Column("value", "float32", "The value of top1, with its sign.", "activation"),
        CHANNEL,
        *WHERE,
        Column(
            "values",
            "int64",
            "Number of values: tokens x channels, including values that are not finite.",
            "count",
        ),
        Column(
            "nan",
            "int64",
            "Number of NaN values; all other columns except values exclude them.",
            "count",
        ),
        Column(
            "infinite",
            "int64",
            "Number of infinite values; all other columns except values exclude them.",
            "count",
        ),
        *intervals("top1", unit="activation"),
    ),
)

CHANNEL_MAXIMA = Table(
    "channel_maxima",
    "The value with the largest |x| over all tokens, and its token, by site, layer and channel.",
    (
        SITE,
        LAYER,
        CHANNEL,
        Column(
            "value",
            "float32",
            "The finite value with the largest |x| (the first of equals).",
            "activation",
        ),
        TOKEN_INDEX,
        SEQUENCE,
        POSITION,
        *intervals("value", unit="activation", signed=True),
    ),
)

DESCRIPTION = Description(
    "magnitudes",
    (
        LAYER_MAGNITUDES,
        CHANNEL_MAXIMA,
    ),
    compared=(LAYER_MAGNITUDES,),
)
