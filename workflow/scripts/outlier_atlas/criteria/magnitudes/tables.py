"""The tables of how large activations are."""

from __future__ import annotations

import pyarrow as pa

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
    "Per site and layer: the three largest |x| and the median of |x| over all tokens and channels.",
    (
        SITE,
        LAYER,
        Column(
            "top1", pa.float32(), "Largest |x| over all finite values of the layer.", "activation"
        ),
        Column(
            "top2",
            pa.float32(),
            "Second largest |x| (another value, perhaps as large). Without an interval, as top3: "
            "in a draw that holds a sequence twice the second largest is the largest again.",
            "activation",
        ),
        Column("top3", pa.float32(), "Third largest |x|.", "activation"),
        Column(
            "median",
            pa.float32(),
            "Median of |x| over all tokens and channels of the layer, the lower of the two middle "
            "values. Exact where all are bfloat16 numbers; otherwise rounded, relative error <= "
            "2^-9.",
            "activation",
        ),
        Column("value", pa.float32(), "The value behind top1, with its sign.", "activation"),
        CHANNEL,
        *WHERE,
        Column(
            "values",
            pa.int64(),
            "Number of values: tokens x channels, those that are not finite among them.",
            "count",
        ),
        Column(
            "nan",
            pa.int64(),
            "Number of values that are NaN; left out of all other columns.",
            "count",
        ),
        Column("infinite", pa.int64(), "Number of infinite values; left out likewise.", "count"),
        *intervals("top1", unit="activation"),
    ),
)

CHANNEL_MAXIMA = Table(
    "channel_maxima",
    "Per site, layer and channel: the value largest in |x| over all tokens, and where it is.",
    (
        SITE,
        LAYER,
        CHANNEL,
        Column(
            "value",
            pa.float32(),
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
