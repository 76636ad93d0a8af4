"""The table of routed experts."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.table import CHANNEL, EXPERT, LAYER, WHERE, Column, Table, intervals

EXPERT_MAGNITUDES = Table(
    "expert_magnitudes",
    "Per layer and routed expert: its tokens, and its largest |down_proj output| over all of them, "
    "with the bias, before the router's weight and before any norm behind it; where it is. Empty "
    "where expert_out was not measured.",
    (
        LAYER,
        EXPERT,
        Column("tokens", "int64", "Number of tokens routed to it.", "count"),
        Column(
            "token_share",
            "float64",
            "tokens / all tokens of the run that are not left out. Over the experts of a layer the "
            "shares add up to the number of experts that a token is routed to.",
            "share",
        ),
        Column(
            "enough_tokens",
            "bool",
            "Whether it saw at least detection.experts.min_tokens tokens.",
        ),
        Column(
            "value",
            "float32",
            "The finite down_proj output with the largest |x|, with its sign (the first of "
            "equals); empty where there is none.",
            "activation",
        ),
        CHANNEL,
        *WHERE,
        Column("nan", "int64", "Tokens with a NaN in its output; left out of value.", "count"),
        Column(
            "infinite",
            "int64",
            "Tokens whose largest |x| is infinite; left out likewise.",
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
