"""The tables of attention sinks."""

from __future__ import annotations

import pyarrow as pa

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import LAYER, POSITION, WHERE, Column, Table, intervals

HEAD = Column("head", pa.int32(), "Query head of attention, 0-based.", "index")

ATTENTION_SINKS = Table(
    "attention_sinks",
    "Attention sinks by layer: how often the first token is one, and which token receives most "
    "attention among the first T of a sequence (extraction.advanced.sink_tokens). Empty where "
    "attn_sink was not measured.",
    (
        LAYER,
        Column("heads", pa.int32(), "Number of query heads.", "count"),
        Column("sequences", pa.int64(), "Number of sequences.", "count"),
        Column(
            "sink_metric",
            pa.float64(),
            "Sink metric of the first token, in %: 100 x share of (sequence, head) in which it "
            "receives more than the threshold. Where no number is NaN, its mean over the layers "
            "is that of the model.",
            "%",
        ),
        Column(
            "sink_heads",
            pa.int32(),
            "Heads whose attention to the first token, as a mean over sequences, is above the "
            "threshold.",
            "count",
        ),
        Column(
            "value",
            pa.float32(),
            "The largest attention that a token receives in a head (the first of equals). The last "
            "of the T tokens has one query alone, itself: a large value there says little.",
            "share",
        ),
        HEAD,
        *WHERE,
        Column("nan", pa.int64(), "Numbers that are NaN; left out of all other columns.", "count"),
        *intervals("sink_metric", unit="%"),
        *intervals("value", unit="share"),
    ),
)

ATTENTION_SINK_HEADS = Table(
    "attention_sink_heads",
    "Per layer and head: the attention that the first token of a sequence receives. Empty where "
    "attn_sink was not measured.",
    (
        LAYER,
        HEAD,
        Column(
            "mean", pa.float64(), "Mean over sequences of what it receives, from 0 to 1.", "share"
        ),
        Column("sink_share", pa.float64(), "Share of sequences in which it is a sink.", "share"),
        *intervals("mean", "sink_share", unit="share"),
    ),
)

ATTENTION_SINK_POSITIONS = Table(
    "attention_sink_positions",
    "Per position below T: how often it is a sink, over all layers and heads. Empty where "
    "attn_sink was not measured.",
    (
        POSITION,
        Column("sequences", pa.int64(), "Number of sequences that have this position.", "count"),
        Column(
            "sink_metric",
            pa.float64(),
            "Sink metric of the position, in %: 100 x share of (sequence, layer, head) in which it "
            "receives more than the threshold; at position 0 the paper's Sink_1.",
            "%",
        ),
        Column("mean", pa.float64(), "Mean of what it receives, over the same.", "share"),
        *intervals("sink_metric", unit="%"),
        *intervals("mean", unit="share"),
    ),
)

DESCRIPTION = Description(
    "attention_sinks",
    (
        ATTENTION_SINKS,
        ATTENTION_SINK_HEADS,
        ATTENTION_SINK_POSITIONS,
    ),
    ("attention_sinks",),
    finding="heads that sink on the first token",
    compared=(ATTENTION_SINKS, ATTENTION_SINK_POSITIONS),
)
