"""The tables of massive activations."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import (
    CHANNEL,
    LAYER,
    POSITION,
    SEQUENCE,
    SITE,
    TOKEN_ID,
    TOKEN_INDEX,
    TOKEN_TEXT,
    Column,
    Table,
    intervals,
)

MASSIVE_ACTIVATIONS = Table(
    "massive_activations",
    "One row for each massive activation with its value and token, sorted by layer, token and "
    "channel. A single value has no interval over sequences; the intervals of massive_channels "
    "show how much values depend on sequences.",
    (
        SITE,
        LAYER,
        SEQUENCE,
        POSITION,
        CHANNEL,
        TOKEN_INDEX,
        TOKEN_ID,
        TOKEN_TEXT,
        Column("value", "float32", "The activation, with its sign.", "activation"),
        Column(
            "tensor_median",
            "float32",
            "Median of |x| over all tokens and channels of this sequence in this layer, the lower "
            "of the two middle values; exact.",
            "activation",
        ),
        Column("tensor_median_ratio", "float64", "|value| / tensor_median.", "ratio"),
        Column(
            "token_median",
            "float32",
            "Median of |x| over the channels of this token, the lower of the two middle values; "
            "exact.",
            "activation",
        ),
        Column("token_median_ratio", "float64", "|value| / token_median.", "ratio"),
    ),
)

MASSIVE_CHANNELS = Table(
    "massive_channels",
    "The massive activations by layer and channel. Intervals are over the draws with a massive "
    "activation.",
    (
        SITE,
        LAYER,
        CHANNEL,
        Column(
            "massive_activations",
            "int64",
            "Number of massive activations in this layer and channel.",
            "count",
        ),
        Column("sequences", "int64", "Number of sequences with a massive activation.", "count"),
        Column(
            "first_position_share",
            "float64",
            "Share of the massive activations at position 0 of a sequence.",
            "share",
        ),
        Column(
            "value",
            "float32",
            "The massive activation with the largest |x|, with its sign.",
            "activation",
        ),
        Column(
            "tensor_median_ratio",
            "float64",
            "|value| / tensor_median of that massive activation.",
            "ratio",
        ),
        SEQUENCE,
        POSITION,
        TOKEN_ID,
        TOKEN_TEXT,
        *intervals("first_position_share", unit="share"),
        *intervals("value", unit="activation", signed=True),
    ),
)

DESCRIPTION = Description(
    "massive_activations",
    (
        MASSIVE_ACTIVATIONS,
        MASSIVE_CHANNELS,
    ),
    ("massive_activations",),
    finding="values",
    compared=(MASSIVE_CHANNELS,),
)
