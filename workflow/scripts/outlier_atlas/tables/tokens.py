"""The tables of what single tokens show: super weights, token outliers, norms."""

from __future__ import annotations

import pyarrow as pa

from outlier_atlas.tables.table import CHANNEL, LAYER, SITE, WHERE, Column, Table, intervals

NO_INTERVALS = (
    "Values of a single token depend on no other sequence than its own: they have no intervals."
)

SUPER_WEIGHTS = Table(
    "super_weights",
    "Per layer the largest input and output of the down projection, and whether both are above the "
    "threshold: then the weight in row and column is a super weight. Token columns are those of "
    "the output.",
    (
        LAYER,
        Column("super_weight", pa.bool_(), "Whether both are above the threshold."),
        Column("row", pa.int32(), "Row of the weight: channel of the largest |output|.", "index"),
        Column("column", pa.int32(), "Its column: channel of the largest |input|.", "index"),
        Column(
            "weight",
            pa.float32(),
            "The weight W[row, column] of down_proj as in the checkpoint, dequantized where it is "
            "quantized; empty where a layer has several.",
            "weight",
        ),
        Column("input", pa.float32(), "Input with the largest |x|, with its sign.", "activation"),
        Column("input_token_index", pa.int64(), "Where it is along the token axis.", "index"),
        Column("output", pa.float32(), "Output with the largest |x|, likewise.", "activation"),
        *WHERE,
        *intervals("input", "output", unit="activation", signed=True),
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
