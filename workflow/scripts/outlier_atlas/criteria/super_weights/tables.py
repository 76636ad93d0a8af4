"""The table of super weights."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import LAYER, WHERE, Column, Table, intervals

SUPER_WEIGHTS = Table(
    "super_weights",
    "The largest output of each layer's down projection, the largest input at the same token, and "
    "whether the weight between them is a super weight. Routed experts are listed only if input "
    "and output are above the threshold. Input and share belong to a single token and have no "
    "intervals.",
    (
        LAYER,
        Column(
            "expert",
            "int32",
            "Routed expert, 0-based; empty for the down projection of the layer itself.",
            "index",
        ),
        Column(
            "super_weight",
            "bool",
            "Whether input and output are above detection.super_weights.threshold and the share "
            "is at least detection.super_weights.min_share; empty if only the share is unknown.",
        ),
        Column("row", "int32", "Row of the weight: channel of the output.", "index"),
        Column("column", "int32", "Column of the weight: channel of the input.", "index"),
        Column(
            "weight",
            "float32",
            "The weight W[row, column] of down_proj in the checkpoint, dequantized if it is "
            "quantized; empty if it is unknown.",
            "weight",
        ),
        Column(
            "input",
            "float32",
            "Input of down_proj with the largest |x| at the token of the output, with its sign.",
            "activation",
        ),
        Column(
            "output",
            "float32",
            "Output of down_proj itself with the largest |x| over all tokens (the first of "
            "equals), with its sign and its bias, before any later norm or factor. For an expert, "
            "it is taken over the tokens routed to it, before the router's weight.",
            "activation",
        ),
        Column(
            "share",
            "float64",
            "weight x input / output, with the weight rounded to the dtype of the run: the share "
            "of the output that this weight contributes. Negative if its contribution has the "
            "opposite sign of the output; above 1 if the other contributions do.",
            "ratio",
        ),
        *WHERE,
        *intervals("output", unit="activation", signed=True),
    ),
)

DESCRIPTION = Description(
    "super_weights",
    (SUPER_WEIGHTS,),
    ("super_weights",),
    finding="weights",
)
