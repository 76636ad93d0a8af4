"""Norms of tokens: the largest ones, and how all of them are distributed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from outlier_atlas.statistics.codes import Float64, Int64
from outlier_atlas.statistics.sparse import CodeHistogram
from outlier_atlas.statistics.summary import Summary


@dataclass
class TokenNorms:
    """Accumulates summaries of one site and layer, in any order and split.

    Memory does not depend on the number of tokens.

    Attributes:
        top: tokens that are kept.
        tokens: indices along the token axis of the tokens with the largest L2 norms, descending;
            the earlier of equals.
        norms: theirs.
        histogram: of the norms of all.
    """

    top: int
    tokens: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    norms: Float64 = field(default_factory=lambda: np.zeros(0))
    histogram: CodeHistogram = field(default_factory=CodeHistogram)

    def update(self, summary: Summary) -> None:
        """Take the summary of a tile; tokens without a finite value have no norm."""
        there = summary.token_channel >= 0
        norms = np.sqrt(summary.token_square[there])
        self.histogram.add(norms)
        self._take(summary.start + summary.token[there].astype(np.int64), norms)

    def merge(self, other: TokenNorms) -> None:
        """Take what another accumulator of the same site and layer has seen."""
        self.histogram.merge(other.histogram)
        self._take(other.tokens, other.norms)

    def quantile(self, quantile: float) -> float:
        """The norm at a quantile over tokens, to a relative 2^-9; NaN of none."""
        return self.histogram.quantiles(quantile)[0]

    def _take(self, tokens: Int64, norms: Float64) -> None:
        tokens, norms = np.append(self.tokens, tokens), np.append(self.norms, norms)
        if len(norms) > self.top:  # to find the least that stays takes a fraction of sorting all
            stays = norms >= np.partition(norms, -self.top)[-self.top]
            tokens, norms = tokens[stays], norms[stays]
        order = np.lexsort((tokens, -norms))[: self.top]
        self.tokens, self.norms = tokens[order], norms[order]
