"""Perplexity of the run's tokens, computed from the losses in the store."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.criteria.columns import (
    Columns,
    interval_columns,
)
from outlier_atlas.criteria.measure import (
    Context,
    Measure,
    Measures,
)
from outlier_atlas.criteria.perplexity.tables import DESCRIPTION, PERPLEXITY
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.losses import counts, predicted, sums
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.tables.table import Table


class PerplexityMeasure(Measure):
    """Perplexity of the run's tokens; no token is excluded.

    Attributes:
        losses: loss of each token, (token,); None if `extraction.perplexity` is false.
    """

    description = DESCRIPTION
    excludes = False

    def __init__(self, context: Context, others: Measures) -> None:
        super().__init__(context, others)
        self.losses: NDArray[np.float32] | None = None

    def read(self, arrays: Arrays) -> None:
        layout = self.context.layout
        if layout.perplexity:
            ranges = map(layout.chunk_range, range(layout.chunks))
            self.losses = np.concatenate(
                [arrays.read(layout.losses, *of_chunk)[:, 0] for of_chunk in ranges]
            )

    def tables(self) -> Iterator[tuple[Table, Columns]]:
        if self.losses is None:
            yield PERPLEXITY, {column.name: [] for column in PERPLEXITY.columns}
        else:
            yield PERPLEXITY, _perplexity(self.losses, self.context.tokens, self.context.bootstrap)


def _perplexity(losses_T: NDArray[np.float32], tokens: TokenStore, bootstrap: Bootstrap) -> Columns:
    """Return the columns of the table of perplexity."""
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
    """Return the mean loss in float64; None without tokens or if a loss is NaN."""
    mean = float(np.mean(losses_T, dtype=np.float64)) if len(losses_T) else math.nan
    return None if math.isnan(mean) else mean
