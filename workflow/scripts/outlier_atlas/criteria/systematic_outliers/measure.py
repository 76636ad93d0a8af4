"""Systematic outliers, with the class of each token."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import cached_property, partial

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
from outlier_atlas.criteria.systematic_outliers.tables import DESCRIPTION, SYSTEMATIC_OUTLIERS
from outlier_atlas.data.classes import token_class
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.section import exactly
from outlier_atlas.statistics.sequences import BySequence, WholeSequence
from outlier_atlas.statistics.tokens import TokenOutlier, above
from outlier_atlas.tables.table import Table


class SystematicOutliersMeasure(CriterionMeasure):
    """Systematic outliers, with the class of each token."""

    description = DESCRIPTION

    def __init__(self, context: Context, others: Measures) -> None:
        super().__init__(context, others)
        block = context.settings.systematic_outliers
        self.site = block.site
        self.of_layers = {
            layer: BySequence(
                context.tokens.sequence_starts, partial(systematic_outliers, ratio=block.ratio)
            )
            for layer in self.layers
        }

    @classmethod
    def sites(cls, settings: DetectionSettings, measured: Collection[str]) -> tuple[str, ...]:
        return (settings.systematic_outliers.site,)

    @classmethod
    def definition(cls, settings: DetectionSettings, sink_tokens: int) -> str:
        block = settings.systematic_outliers
        return (
            f"A token of {block.site} is flagged if its largest |x| > {exactly(block.ratio)} times "
            "the mean of |x| over all tokens and channels of its sequence in that layer, finite "
            "values alone (An et al. 2025, arXiv 2502.06415)."
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
        columns = outlier_columns(self.found, self.site, self.context.tokens, "mean")
        positions = columns["position"].tolist()
        places = zip(columns["token_text"], positions, columns["token_id"], strict=True)
        special = self.context.special_ids
        classes = [token_class(text, position, id in special) for text, position, id in places]
        yield SYSTEMATIC_OUTLIERS, columns | {"token_class": classes}


def systematic_outliers(sequence: WholeSequence, ratio: float) -> Iterator[TokenOutlier]:
    """Tokens whose largest |x| > `ratio` times the mean of |x| over the sequence (An et al. 2025).

    Compared in float64.
    """
    return above(sequence, ratio, sequence.mean)
