"""The tables of what single tokens show: super weights, token outliers, norms."""

from __future__ import annotations

import pyarrow as pa

from outlier_atlas.tables.table import CHANNEL, LAYER, SITE, WHERE, Column, Table, intervals

NO_INTERVALS = (
    "Values of a single token depend on no other sequence than its own: they have no intervals."
)

SUPER_WEIGHTS = Table(
    "super_weights",
    "The largest output of each layer's down projection, the largest input at the same token, and "
    "whether the weight between them is a super weight. Of routed experts those rows are listed in "
    "which input and output are above the threshold. Input and share are of a single token and "
    "have no intervals.",
    (
        LAYER,
        Column(
            "expert",
            pa.int32(),
            "Routed expert, 0-based; empty for a down projection of the layer's own.",
            "index",
        ),
        Column(
            "super_weight",
            pa.bool_(),
            "Whether input and output are above detection.super_weights.threshold and the share "
            "is at least detection.super_weights.min_share; empty where only the share is not "
            "known.",
        ),
        Column("row", pa.int32(), "Row of the weight: channel of the output.", "index"),
        Column("column", pa.int32(), "Its column: channel of the input.", "index"),
        Column(
            "weight",
            pa.float32(),
            "The weight W[row, column] of down_proj as in the checkpoint, dequantized where it is "
            "quantized; empty where it is not known.",
            "weight",
        ),
        Column(
            "input",
            pa.float32(),
            "Input of down_proj with the largest |x| at the token of the output, with its sign.",
            "activation",
        ),
        Column(
            "output",
            pa.float32(),
            "Output of down_proj itself with the largest |x| over all tokens (the first of "
            "equals), with its sign and its bias, before any norm or factor behind it; of an "
            "expert over the tokens routed to it, before the router's weight.",
            "activation",
        ),
        Column(
            "share",
            pa.float64(),
            "weight x input / output, the weight rounded to the dtype of the run: how much of the "
            "output this one weight makes. Negative where it works against the output; above 1 "
            "where others do.",
            "ratio",
        ),
        *WHERE,
        *intervals("output", unit="activation", signed=True),
    ),
)

SYSTEMATIC_OUTLIERS = Table(
    "systematic_outliers",
    "A row for each token whose largest |x| is far above the mean of |x|, by layer and token. "
    f"{NO_INTERVALS}",
    (
        SITE,
        LAYER,
        *WHERE,
        CHANNEL,
        Column("value", pa.float32(), "Its value largest in |x|, with its sign.", "activation"),
        Column(
            "mean",
            pa.float64(),
            "Mean of |x| over all tokens and channels of its sequence in that layer, finite values "
            "alone; sums in float64, within 1e-11 of the exact mean.",
            "activation",
        ),
        Column("mean_ratio", pa.float64(), "|value| / mean.", "ratio"),
        Column(
            "token_class",
            pa.string(),
            "From its text without spaces: initial, at position 0; strong_delimiter, nothing but "
            "line breaks or . ! ? ; : characters; weakly_semantic, empty, other characters that "
            "are neither letter nor digit, or an English function word; other, all else, special "
            "tokens among them. The first that fits.",
        ),
    ),
)

TOKEN_OUTLIERS = Table(
    "token_outliers",
    f"A row for each token outlier, by layer and token. {NO_INTERVALS}",
    (
        SITE,
        LAYER,
        *WHERE,
        CHANNEL,
        Column("value", pa.float32(), "Its value largest in |x|, with its sign.", "activation"),
        Column(
            "median",
            pa.float64(),
            "Median, over the tokens of its sequence in that layer that have a finite value, of "
            "their largest |x|; the lower of the two middle ones, exact.",
            "activation",
        ),
        Column("median_ratio", pa.float64(), "|value| / median.", "ratio"),
    ),
)

TOKEN_NORMS = Table(
    "token_norms",
    "Per layer the tokens of the largest L2 norm (detection.token_norms.top of them), descending; "
    f"quantiles over all tokens are in layer_measures. {NO_INTERVALS}",
    (
        SITE,
        LAYER,
        Column("rank", pa.int32(), "1 for the token of the largest norm.", "index"),
        *WHERE,
        Column("norm", pa.float64(), "L2 norm over channels.", "activation"),
        Column(
            "median",
            pa.float64(),
            "Median norm over all tokens of the layer that have a finite value, the lower of the "
            "two middle ones; rounded, relative error <= 2^-9.",
            "activation",
        ),
        Column("median_ratio", pa.float64(), "norm / median.", "ratio"),
    ),
)
