"""The table of perplexity."""

from __future__ import annotations

import pyarrow as pa

from outlier_atlas.criteria.description import Description
from outlier_atlas.tables.losses import LOSS, PERPLEXITY_OF_LOSS
from outlier_atlas.tables.table import Column, Table, intervals

PERPLEXITY = Table(
    "perplexity",
    "Perplexity of the run's own tokens, by sequence and over all. A token's context is its "
    "sequence from the start; a single one has no interval. Empty where extraction.perplexity is "
    "false.",
    (
        Column(
            "sequence",
            pa.int32(),
            "Sequence, 0-based; empty in the row over all sequences.",
            "index",
        ),
        Column(
            "tokens",
            pa.int64(),
            "Number of tokens that are predicted: all but the first of each sequence.",
            "count",
        ),
        Column(
            "nan",
            pa.int64(),
            "Those of them whose loss is NaN. Where there is one, loss and perplexity are empty.",
            "count",
        ),
        LOSS,
        PERPLEXITY_OF_LOSS,
        *intervals("loss", unit="nats"),
        *intervals("perplexity", unit="ratio"),
    ),
)

DESCRIPTION = Description("perplexity", (PERPLEXITY,), compared=(PERPLEXITY,))
