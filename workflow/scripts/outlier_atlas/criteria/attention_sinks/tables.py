"""The tables of attention sinks."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import LAYER, POSITION, WHERE, Column, Table, intervals

HEAD = Column("head", "int32", "Query head of attention, 0-based.", "index")

ATTENTION_SINKS = Table(
    "attention_sinks",
    "Attention sinks by layer: how often the first token is a sink, and which of the first T "
    "tokens of a sequence (extraction.advanced.sink_tokens) receives the most attention. Empty if "
    "attn_sink was not measured.",
    (
        LAYER,
        Column("heads", "int32", "Number of query heads.", "count"),
        Column("sequences", "int64", "Number of sequences.", "count"),
        Column(
            "sink_metric",
            "float64",
            "Sink metric of the first token, in %: 100 x share of (sequence, head) in which it "
            "receives more attention than the threshold. If no number is NaN, the mean over the "
            "layers is the sink metric of the model.",
            "%",
        ),
        Column(
            "sink_heads",
            "int32",
            "Number of heads whose mean attention to the first token over sequences is above the "
            "threshold.",
            "count",
        ),
        Column(
            "value",
            "float32",
            "The largest attention that a token receives in a head (the first of equals). The last "
            "of the T tokens has a single query, itself, so a large value there means little.",
            "share",
        ),
        HEAD,
        *WHERE,
        Column(
            "nan",
            "int64",
            "Number of NaN values; all other columns exclude them.",
            "count",
        ),
        *intervals("sink_metric", unit="%"),
        *intervals("value", unit="share"),
    ),
)

ATTENTION_SINK_HEADS = Table(
    "attention_sink_heads",
    "The attention that the first token of a sequence receives, by layer and head. Empty if "
    "attn_sink was not measured.",
    (
        LAYER,
        HEAD,
        Column(
            "mean",
            "float64",
            "Mean over sequences of the attention that it receives, from 0 to 1.",
            "share",
        ),
        Column(
            "sink_share",
            "float64",
            "Share of sequences in which the first token is a sink.",
            "share",
        ),
        *intervals("mean", "sink_share", unit="share"),
    ),
)

ATTENTION_SINK_POSITIONS = Table(
    "attention_sink_positions",
    "How often each position below T is a sink, over all layers and heads. Empty if attn_sink was "
    "not measured.",
    (
        POSITION,
        Column("sequences", "int64", "Number of sequences that have this position.", "count"),
        Column(
            "sink_metric",
            "float64",
            "Sink metric of the position, in %: 100 x share of (sequence, layer, head) in which it "
            "receives more attention than the threshold; at position 0 the paper's Sink_1.",
            "%",
        ),
        Column(
            "mean",
            "float64",
            "Mean over (sequence, layer, head) of the attention that the position receives.",
            "share",
        ),
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
