"""The table of super weights."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import LAYER, WHERE, Column, Table, intervals

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
            "int32",
            "Routed expert, 0-based; empty for a down projection of the layer's own.",
            "index",
        ),
        Column(
            "super_weight",
            "bool",
            "Whether input and output are above detection.super_weights.threshold and the share "
            "is at least detection.super_weights.min_share; empty where only the share is not "
            "known.",
        ),
        Column("row", "int32", "Row of the weight: channel of the output.", "index"),
        Column("column", "int32", "Its column: channel of the input.", "index"),
        Column(
            "weight",
            "float32",
            "The weight W[row, column] of down_proj as in the checkpoint, dequantized where it is "
            "quantized; empty where it is not known.",
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
            "equals), with its sign and its bias, before any norm or factor behind it; of an "
            "expert over the tokens routed to it, before the router's weight.",
            "activation",
        ),
        Column(
            "share",
            "float64",
            "weight x input / output, the weight rounded to the dtype of the run: how much of the "
            "output this one weight makes. Negative where it works against the output; above 1 "
            "where others do.",
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
