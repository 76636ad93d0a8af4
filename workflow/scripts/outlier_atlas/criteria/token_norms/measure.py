"""Tokens with the largest norms, and the distribution of all norms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from outlier_atlas.criteria.columns import (
    Columns,
    located,
    ratio,
)
from outlier_atlas.criteria.measure import (
    Context,
    Measure,
    Measures,
    Place,
    Taker,
)
from outlier_atlas.criteria.token_norms.tables import DESCRIPTION, TOKEN_NORMS
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.statistics.codes import Float64, Int64
from outlier_atlas.statistics.sparse import CodeHistogram
from outlier_atlas.statistics.summary import Summary
from outlier_atlas.tables.table import Table


class TokenNormsMeasure(Measure):
    """The tokens with the largest norms at one site.

    Attributes:
        site: the site.
        of_layers: accumulator of each layer; empty if the site was not measured.
    """

    description = DESCRIPTION

    def __init__(self, context: Context, others: Measures) -> None:
        super().__init__(context, others)
        block, layout = context.settings.token_norms, context.layout
        self.site = block.site
        layers = layout.layers if block.site in layout.sites else ()
        self.of_layers = {layer: TokenNorms(block.top) for layer in layers}

    def takers(self) -> Iterable[tuple[Place, Taker]]:
        return (((self.site, layer), each.update) for layer, each in self.of_layers.items())

    def tables(self) -> Iterator[tuple[Table, Columns]]:
        yield TOKEN_NORMS, _norms(self.of_layers, self.site, self.context.tokens)


@dataclass
class TokenNorms:
    """An accumulator for summaries of one site and layer, in any order and division.

    Memory does not depend on the number of tokens.

    Attributes:
        top: number of tokens to keep.
        tokens: indices along the token axis of the tokens with the largest L2 norms, in descending
            order of norms. The earlier of two tokens with equal norms comes first.
        norms: norms of these tokens.
        histogram: histogram of the norms of all tokens.
    """

    top: int
    tokens: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    norms: Float64 = field(default_factory=lambda: np.zeros(0))
    histogram: CodeHistogram = field(default_factory=CodeHistogram)

    def update(self, summary: Summary) -> None:
        """Add the summary of a tile; tokens without a finite value have no norm."""
        finite = summary.token_channel >= 0
        norms = np.sqrt(summary.token_square[finite])
        self.histogram.add(norms)
        self._take(summary.start + summary.token[finite].astype(np.int64), norms)

    def merge(self, other: TokenNorms) -> None:
        """Add the contents of another accumulator of the same site and layer."""
        self.histogram.merge(other.histogram)
        self._take(other.tokens, other.norms)

    def quantile(self, quantile: float) -> float:
        """Return a quantile of the norms, relative error <= 2^-9; NaN without tokens."""
        return self.histogram.quantiles(quantile)[0]

    def _take(self, tokens: Int64, norms: Float64) -> None:
        tokens, norms = np.append(self.tokens, tokens), np.append(self.norms, norms)
        if len(norms) > self.top:  # partition is much faster than sorting all norms
            stays = norms >= np.partition(norms, -self.top)[-self.top]
            tokens, norms = tokens[stays], norms[stays]
        order = np.lexsort((tokens, -norms))[: self.top]
        self.tokens, self.norms = tokens[order], norms[order]


def _norms(norms: Mapping[int, TokenNorms], site: str, tokens: TokenStore) -> Columns:
    """Return the columns of the table of tokens with the largest norms of each layer."""
    medians = {layer: each.quantile(0.5) for layer, each in norms.items()}
    rows = [
        (layer, rank, int(token), float(norm), medians[layer])
        for layer, each in sorted(norms.items())
        for rank, (token, norm) in enumerate(zip(each.tokens, each.norms, strict=True), 1)
    ]
    return {
        "site": [site] * len(rows),
        "layer": [layer for layer, *_ in rows],
        "rank": [rank for _, rank, *_ in rows],
        **located(tokens, [token for _, _, token, _, _ in rows]),
        "norm": [norm for *_, norm, _ in rows],
        "median": [median for *_, median in rows],
        "median_ratio": [ratio(norm, median) for *_, norm, median in rows],
    }
