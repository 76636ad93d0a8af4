"""The table of perplexity."""

from __future__ import annotations

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.losses import LOSS, PERPLEXITY_OF_LOSS
from outlier_atlas.tables.table import Column, Table, intervals

PERPLEXITY = Table(
    "perplexity",
    "Perplexity of the run's own tokens, by sequence and over all sequences. The context of a "
    "token is its sequence from the start. Single sequences have no intervals. Empty if "
    "extraction.perplexity is false.",
    (
        Column(
            "sequence",
            "int32",
            "Sequence, 0-based; empty in the row over all sequences.",
            "index",
        ),
        Column(
            "tokens",
            "int64",
            "Number of predicted tokens: all except the first of each sequence.",
            "count",
        ),
        Column(
            "nan",
            "int64",
            "Number of predicted tokens whose loss is NaN. If there is one, loss and perplexity "
            "are empty.",
            "count",
        ),
        LOSS,
        PERPLEXITY_OF_LOSS,
        *intervals("loss", unit="nats"),
        *intervals("perplexity", unit="ratio"),
    ),
)

DESCRIPTION = Description("perplexity", (PERPLEXITY,), compared=(PERPLEXITY,))
