"""Perplexity of a run's tokens, from their losses in its store."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.criteria.perplexity.tables import PERPLEXITY
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.detection.columns import Columns, interval_columns
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.losses import counts, predicted, sums
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.layout import Layout


def perplexity(arrays: Arrays, layout: Layout, tokens: TokenStore, bootstrap: Bootstrap) -> Columns:
    """The columns of the table; without rows where no losses are stored.

    Raises:
        DamagedChunkError: a chunk of the losses is damaged or missing.
    """
    if not layout.perplexity:
        return {column.name: [] for column in PERPLEXITY.columns}
    losses_T = np.concatenate(
        [
            arrays.read(layout.losses, *layout.chunk_range(chunk))[:, 0]
            for chunk in range(layout.chunks)
        ]
    )
    own = predicted(losses_T, tokens.sequence_starts)
    ends = bootstrap.ratios(sums(own), counts(own))
    of_rows = [*[None] * tokens.sequences, ends]
    exponents = [*[None] * tokens.sequences, ends and (np.exp(ends[0]), np.exp(ends[1]))]
    return {
        **_rows([*own, np.concatenate(own)], [*range(tokens.sequences), None]),
        **interval_columns("loss", of_rows),
        **interval_columns("perplexity", exponents),
    }


def _rows(losses: list[NDArray[np.float32]], sequences: list[int | None]) -> Columns:
    means = [mean_loss(each) for each in losses]
    return {
        "sequence": sequences,
        "tokens": [len(each) for each in losses],
        "nan": [int(np.count_nonzero(np.isnan(each))) for each in losses],
        "loss": means,
        "perplexity": [None if mean is None else float(np.exp(mean)) for mean in means],
    }


def mean_loss(losses_T: NDArray[np.float32]) -> float | None:
    """The mean in float64; None of no tokens, or where a loss is NaN. None is left out."""
    mean = float(np.mean(losses_T, dtype=np.float64)) if len(losses_T) else math.nan
    return None if math.isnan(mean) else mean
