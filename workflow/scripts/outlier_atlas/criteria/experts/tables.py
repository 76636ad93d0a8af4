"""The table of routed experts."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import CHANNEL, EXPERT, LAYER, WHERE, Column, Table, intervals

EXPERT_MAGNITUDES = Table(
    "expert_magnitudes",
    "The number of tokens and the largest |down_proj output| of each routed expert, by layer. The "
    "output includes the bias and is taken before the router's weight and before any later norm. "
    "Empty if expert_out was not measured.",
    (
        LAYER,
        EXPERT,
        Column("tokens", "int64", "Number of tokens routed to the expert.", "count"),
        Column(
            "token_share",
            "float64",
            "tokens / all tokens of the run that are not excluded. The shares of the experts of a "
            "layer add up to the number of experts that a token is routed to.",
            "share",
        ),
        Column(
            "enough_tokens",
            "bool",
            "Whether at least detection.experts.min_tokens tokens were routed to the expert.",
        ),
        Column(
            "value",
            "float32",
            "The finite down_proj output with the largest |x|, with its sign (the first of "
            "equals); empty if there is none.",
            "activation",
        ),
        CHANNEL,
        *WHERE,
        Column(
            "nan",
            "int64",
            "Number of tokens with a NaN in the expert's output; value excludes them.",
            "count",
        ),
        Column(
            "infinite",
            "int64",
            "Number of tokens whose largest |x| is infinite; value excludes them.",
            "count",
        ),
        *intervals("token_share", unit="share"),
        *intervals("value", unit="activation", signed=True),
    ),
)

DESCRIPTION = Description(
    "experts",
    (EXPERT_MAGNITUDES,),
    ("experts",),
)
