"""The tables of the outlier features of LLM.int8()."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import CHANNEL, Column, Table, intervals

SHARES = (
    "layer_share_layers",
    "layer_share_tensors",
    "position_share_union",
    "position_share_mean",
    "position_share_max",
    "positive_share",
)
"""Names of the shares that have intervals over sequences."""

LLM_INT8_FEATURES = Table(
    "llm_int8_features",
    "LLM.int8(): one row for each channel with at least one value |x| >= threshold at the "
    "criterion's sites, outlier features first.",
    (
        CHANNEL,
        Column(
            "outlier_feature",
            "bool",
            "Whether the channel reaches both shares, as the configuration defines them.",
        ),
        Column(
            "layers",
            "int32",
            "Number of layers with an outlier of this channel at any of the sites.",
            "count",
        ),
        Column(
            "tensors",
            "int32",
            "Number of tensors (layer and site) with an outlier of this channel.",
            "count",
        ),
        Column(
            "layer_share_layers",
            "float64",
            "layers / measured layers that have a finite value at any of the sites.",
            "share",
        ),
        Column(
            "layer_share_tensors",
            "float64",
            "tensors / measured tensors (layers x sites) that have a finite value.",
            "share",
        ),
        Column(
            "position_share_union",
            "float64",
            "Share of positions (sequence, position) with an outlier of this channel in at least "
            "one tensor, among all positions with a finite value in one.",
            "share",
        ),
        Column(
            "position_share_mean",
            "float64",
            "Share of a tensor's positions with an outlier, among those with a finite value; mean "
            "over the affected tensors.",
            "share",
        ),
        Column(
            "position_share_max",
            "float64",
            "Share as in position_share_mean, in the tensor with the largest share.",
            "share",
        ),
        Column(
            "outlier_values",
            "int64",
            "Number of values |x| >= threshold, over all tensors.",
            "count",
        ),
        Column("positive_share", "float64", "Share of outlier values that are positive.", "share"),
        Column(
            "sidedness",
            "string",
            "one-sided: all outlier values have the same sign; two-sided: they have both signs.",
        ),
        Column(
            "quartile1",
            "float32",
            "First quartile of the signed outlier values, the lower of two neighbours. Exact if "
            "they are bfloat16 numbers; otherwise rounded, relative error <= 2^-9.",
            "activation",
        ),
        Column(
            "median",
            "float32",
            "Median of the signed outlier values, with the rounding of quartile1.",
            "activation",
        ),
        Column(
            "quartile3",
            "float32",
            "Third quartile of the signed outlier values, with the rounding of quartile1.",
            "activation",
        ),
        Column(
            "value",
            "float32",
            "The outlier value with the largest |x|, with its sign. Its interval is that of the "
            "channel's largest |x| at the sites, which may be below the threshold.",
            "activation",
        ),
        *intervals(*SHARES, unit="share"),
        *intervals("value", unit="activation", signed=True),
    ),
)

LLM_INT8_VARIANTS = Table(
    "llm_int8_variants",
    "LLM.int8(): number of outlier features under each definition of the two shares.",
    (
        Column("layer_share_over", "string", "Unit of the layer share: layers or tensors."),
        Column(
            "position_share_by",
            "string",
            "Definition of the position share: union, mean or max.",
        ),
        Column("configured", "bool", "Whether the run is configured with these definitions."),
        Column(
            "outlier_features",
            "int64",
            "Number of outlier features under these definitions.",
            "count",
        ),
        Column("channels", "string", "Outlier features, ascending, separated by spaces."),
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
