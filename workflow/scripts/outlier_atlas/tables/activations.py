"""The tables of how large activations are, and of which criteria were measured."""

from __future__ import annotations

import pyarrow as pa

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

CRITERIA = Table(
    "criteria",
    "Each criterion: whether it was measured, on which sites, and how many findings it has.",
    (
        Column("criterion", pa.string(), "Name of the criterion, as in the configuration."),
        Column("measured", pa.bool_(), "Whether all of its sites were measured."),
        Column("sites", pa.string(), "Sites it is defined on in this run, separated by spaces."),
        Column("missing_sites", pa.string(), "Those of its sites that were not measured."),
        Column(
            "findings",
            pa.int64(),
            "Number of findings: channels of llm_int8, values of massive_activations, weights of "
            "super_weights, experts of super_experts, heads that sink on the first token of "
            "attention_sinks, tokens of the others. "
            "Empty where the criterion was not measured, or could look at no layer.",
            "count",
        ),
        Column(
            "not_finite",
            pa.int64(),
            "NaN and infinite values of its sites, which all of its numbers leave out (of "
            "expert_out, tokens with one in an expert's output). Empty where it was not measured.",
            "count",
        ),
        Column(
            "layers_not_finite",
            pa.string(),
            "Layers that it could not look at, separated by spaces: one of its sites has no finite "
            "value there (llm_int8: none of its sites has one). No share counts them.",
        ),
        Column("definition", pa.string(), "The criterion in one sentence, with its thresholds."),
    ),
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
