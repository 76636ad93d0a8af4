"""The tables of massive activations."""

from __future__ import annotations

import pyarrow as pa

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
    "A row for each massive activation: value, place and token; by layer, token and channel. A "
    "single value has no interval over sequences: those of massive_channels say how far it depends "
    "on them.",
    (
        SITE,
        LAYER,
        SEQUENCE,
        POSITION,
        CHANNEL,
        TOKEN_INDEX,
        TOKEN_ID,
        TOKEN_TEXT,
        Column("value", pa.float32(), "The activation, with its sign.", "activation"),
        Column(
            "tensor_median",
            pa.float32(),
            "Median of |x| over all tokens and channels of this sequence in this layer, the lower "
            "of the two middle values; exact.",
            "activation",
        ),
        Column("tensor_median_ratio", pa.float64(), "|value| / tensor_median.", "ratio"),
        Column(
            "token_median",
            pa.float32(),
            "Median of |x| over the channels of this token, the lower of the two middle values; "
            "exact.",
            "activation",
        ),
        Column("token_median_ratio", pa.float64(), "|value| / token_median.", "ratio"),
    ),
)

MASSIVE_CHANNELS = Table(
    "massive_channels",
    "The massive activations by layer and channel. Intervals are over the draws that have one.",
    (
        SITE,
        LAYER,
        CHANNEL,
        Column(
            "massive_activations",
            pa.int64(),
            "Massive activations in this layer and channel.",
            "count",
        ),
        Column("sequences", pa.int64(), "Sequences that have at least one.", "count"),
        Column(
            "first_position_share",
            pa.float64(),
            "Share of them at position 0 of a sequence.",
            "share",
        ),
        Column("value", pa.float32(), "The largest of them in |x|, with its sign.", "activation"),
        Column("tensor_median_ratio", pa.float64(), "Its |value| / tensor_median.", "ratio"),
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
