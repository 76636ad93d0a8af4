"""Norms of tokens: the largest ones, and how all of them are distributed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from outlier_atlas.statistics.codes import (
    CODES,
    Float64,
    Int64,
    bfloat16_codes,
    from_code,
    lower_quantile,
)
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
        histogram: how often each bfloat16 code of a norm occurs.
    """

    top: int
    tokens: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    norms: Float64 = field(default_factory=lambda: np.zeros(0))
    histogram: Int64 = field(default_factory=lambda: np.zeros(CODES + 1, np.int64))

    def update(self, summary: Summary) -> None:
        """Take the summary of a tile; tokens without a finite value have no norm."""
        there = summary.token_channel >= 0
        norms = np.sqrt(summary.token_square[there])
        with np.errstate(over="ignore"):
            codes = bfloat16_codes(norms.astype(np.float32))
        self.histogram += np.bincount(codes, minlength=CODES + 1)
        self._take(summary.start + summary.token[there].astype(np.int64), norms)

    def merge(self, other: TokenNorms) -> None:
        """Take what another accumulator of the same site and layer has seen."""
        self.histogram += other.histogram
        self._take(other.tokens, other.norms)

    def quantile(self, quantile: float) -> float:
        """The norm at a quantile over tokens, to the precision of bfloat16; NaN of none."""
        if not self.histogram.any():
            return float("nan")
        return from_code(lower_quantile(np.arange(CODES + 1), self.histogram, quantile))

    def _take(self, tokens: Int64, norms: Float64) -> None:
        tokens, norms = np.append(self.tokens, tokens), np.append(self.norms, norms)
        order = np.lexsort((tokens, -norms))[: self.top]
        self.tokens, self.norms = tokens[order], norms[order]
