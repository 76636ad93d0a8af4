"""Token outliers of PrefixQuant."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import cached_property, partial

import numpy as np

from outlier_atlas.criteria.columns import (
    Columns,
    outlier_columns,
)
from outlier_atlas.criteria.measure import (
    Context,
    CriterionMeasure,
    Measures,
    Place,
    Taker,
)
from outlier_atlas.criteria.token_outliers.tables import DESCRIPTION, TOKEN_OUTLIERS
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.section import exactly
from outlier_atlas.statistics.sequences import BySequence, WholeSequence
from outlier_atlas.statistics.tokens import TokenOutlier, above
from outlier_atlas.tables.table import Table


class TokenOutliersMeasure(CriterionMeasure):
    """Token outliers of PrefixQuant."""

    description = DESCRIPTION

    def __init__(self, context: Context, others: Measures) -> None:
        super().__init__(context, others)
        block = context.settings.token_outliers
        self.site = block.site
        self.of_layers = {
            layer: BySequence(
                context.tokens.sequence_starts, partial(token_outliers, ratio=block.ratio)
            )
            for layer in self.layers
        }

    @classmethod
    def sites(cls, settings: DetectionSettings, measured: Collection[str]) -> tuple[str, ...]:
        return (settings.token_outliers.site,)

    @classmethod
    def definition(cls, settings: DetectionSettings, sink_tokens: int) -> str:
        block = settings.token_outliers
        return (
            f"A token of {block.site} is an outlier if its largest |x| > {exactly(block.ratio)} "
            "times the median, over the tokens of its sequence in that layer, of their largest "
            "finite |x| (PrefixQuant, Chen et al. 2024, arXiv 2410.05265)."
        )

    def takers(self) -> Iterable[tuple[Place, Taker]]:
        return (((self.site, layer), each.update) for layer, each in self.of_layers.items())

    @cached_property
    def found(self) -> list[tuple[int, TokenOutlier]]:
        """The outliers, by layer."""
        return [(layer, one) for layer, each in self.of_layers.items() for one in each.results()]

    def findings(self) -> int:
        return len(self.found)

    def tables(self) -> Iterator[tuple[Table, Columns]]:
        yield (
            TOKEN_OUTLIERS,
            outlier_columns(self.found, self.site, self.context.tokens, "median"),
        )


def token_outliers(sequence: WholeSequence, ratio: float) -> Iterator[TokenOutlier]:
    """Tokens whose largest |x| > `ratio` times the median over the sequence's tokens of their
    largest |x| (PrefixQuant, Chen et al. 2024, arXiv 2410.05265).

    The median is the lower of the two middle ones. Compared in float64.
    """
    largest = np.sort(np.abs(sequence.token_values[sequence.token_channels >= 0]))
    median = float(largest[(len(largest) - 1) // 2]) if len(largest) else float("nan")
    return above(sequence, ratio, median)
