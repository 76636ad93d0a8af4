"""The tables of the outlier features of LLM.int8()."""

from __future__ import annotations

import pyarrow as pa

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import CHANNEL, Column, Table, intervals

LLM_INT8_FEATURES = Table(
    "llm_int8_features",
    "LLM.int8(): one row for each channel with at least one value |x| >= threshold at the "
    "criterion's sites, outlier features first.",
    (
        CHANNEL,
        Column(
            "outlier_feature",
            pa.bool_(),
            "Whether the channel reaches both shares, as the configuration defines them.",
        ),
        Column(
            "layers",
            pa.int32(),
            "Number of layers with an outlier of this channel at any of the sites.",
            "count",
        ),
        Column(
            "tensors",
            pa.int32(),
            "Number of tensors (layer and site) with an outlier of this channel.",
            "count",
        ),
        Column(
            "layer_share_layers",
            pa.float64(),
            "layers / measured layers that have a finite value at any of the sites.",
            "share",
        ),
        Column(
            "layer_share_tensors",
            pa.float64(),
            "tensors / measured tensors (layers x sites) that have a finite value.",
            "share",
        ),
        Column(
            "position_share_union",
            pa.float64(),
            "Share of positions (sequence, position) with an outlier of this channel in at least "
            "one tensor, among all positions with a finite value in one.",
            "share",
        ),
        Column(
            "position_share_mean",
            pa.float64(),
            "Share of a tensor's positions with an outlier, among those with a finite value; mean "
            "over the affected tensors.",
            "share",
        ),
        Column(
            "position_share_max",
            pa.float64(),
            "Share as in position_share_mean, in the tensor with the largest share.",
            "share",
        ),
        Column(
            "outlier_values",
            pa.int64(),
            "Number of values |x| >= threshold, over all tensors.",
            "count",
        ),
        Column(
            "positive_share", pa.float64(), "Share of outlier values that are positive.", "share"
        ),
        Column(
            "sidedness",
            pa.string(),
            "one-sided: all outlier values have the same sign; two-sided: they have both signs.",
        ),
        Column(
            "quartile1",
            pa.float32(),
            "First quartile of the signed outlier values, the lower of two neighbours. Exact if "
            "they are bfloat16 numbers; otherwise rounded, relative error <= 2^-9.",
            "activation",
        ),
        Column(
            "median",
            pa.float32(),
            "Median of the signed outlier values, with the rounding of quartile1.",
            "activation",
        ),
        Column(
            "quartile3",
            pa.float32(),
            "Third quartile of the signed outlier values, with the rounding of quartile1.",
            "activation",
        ),
        Column(
            "value",
            pa.float32(),
            "The outlier value with the largest |x|, with its sign. Its interval is that of the "
            "channel's largest |x| at the sites, which may be below the threshold.",
            "activation",
        ),
        *intervals(
            "layer_share_layers",
            "layer_share_tensors",
            "position_share_union",
            "position_share_mean",
            "position_share_max",
            "positive_share",
            unit="share",
        ),
        *intervals("value", unit="activation", signed=True),
    ),
)

LLM_INT8_VARIANTS = Table(
    "llm_int8_variants",
    "LLM.int8(): number of outlier features under each definition of the two shares.",
    (
        Column("layer_share_over", pa.string(), "Unit of the layer share: layers or tensors."),
        Column(
            "position_share_by",
            pa.string(),
            "Definition of the position share: union, mean or max.",
        ),
        Column("configured", pa.bool_(), "Whether the run is configured with these definitions."),
        Column(
            "outlier_features",
            pa.int64(),
            "Number of outlier features under these definitions.",
            "count",
        ),
        Column("channels", pa.string(), "Outlier features, ascending, separated by spaces."),
    ),
)

DESCRIPTION = Description(
    "llm_int8",
    (
        LLM_INT8_FEATURES,
        LLM_INT8_VARIANTS,
    ),
    ("llm_int8",),
    finding="channels",
)
