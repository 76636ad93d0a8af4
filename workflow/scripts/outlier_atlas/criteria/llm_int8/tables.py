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
    "LLM.int8(): a row for each channel with at least one value |x| >= threshold at the "
    "criterion's sites, outlier features first.",
    (
        CHANNEL,
        Column(
            "outlier_feature",
            "bool",
            "Whether the channel passes both shares, as the configuration defines them.",
        ),
        Column(
            "layers",
            "int32",
            "Layers with an outlier of this channel at any of the sites.",
            "count",
        ),
        Column(
            "tensors",
            "int32",
            "Tensors (layer and site) with an outlier of this channel.",
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
            "one tensor, of all that have a finite value in one.",
            "share",
        ),
        Column(
            "position_share_mean",
            "float64",
            "Share of a tensor's positions (those with a finite value) with an outlier, mean over "
            "the affected tensors.",
            "share",
        ),
        Column(
            "position_share_max",
            "float64",
            "The same share in the tensor where it is largest.",
            "share",
        ),
        Column(
            "outlier_values",
            "int64",
            "Number of values |x| >= threshold, over all tensors.",
            "count",
        ),
        Column("positive_share", "float64", "Share of them that are positive.", "share"),
        Column(
            "sidedness", "string", "one-sided: all outlier values have one sign; two-sided: not."
        ),
        Column(
            "quartile1",
            "float32",
            "First quartile of the outlier values (signed; lower of two neighbours). Exact where "
            "they are bfloat16 numbers; otherwise rounded, relative error <= 2^-9.",
            "activation",
        ),
        Column("median", "float32", "Median of the outlier values, likewise.", "activation"),
        Column(
            "quartile3",
            "float32",
            "Third quartile of the outlier values, likewise.",
            "activation",
        ),
        Column(
            "value",
            "float32",
            "The outlier value with the largest |x|, with its sign. Its interval is of the "
            "channel's largest |x| at the sites, below the threshold, too.",
            "activation",
        ),
        *intervals(*SHARES, unit="share"),
        *intervals("value", unit="activation", signed=True),
    ),
)

LLM_INT8_VARIANTS = Table(
    "llm_int8_variants",
    "LLM.int8(): how many outlier features each reading of the two shares gives.",
    (
        Column("layer_share_over", "string", "What the layer share counts: layers or tensors."),
        Column("position_share_by", "string", "The position share: union, mean or max."),
        Column("configured", "bool", "Whether this is the reading that the run configures."),
        Column("outlier_features", "int64", "Channels that are outlier features so read.", "count"),
        Column("channels", "string", "Those channels, ascending, separated by spaces."),
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
