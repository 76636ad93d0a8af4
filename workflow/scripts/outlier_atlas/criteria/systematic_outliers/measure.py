"""Systematic outliers (An et al. 2025), with the class of each token."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial

from outlier_atlas.criteria.columns import Columns, outlier_columns
from outlier_atlas.criteria.sequence_criterion import SequenceCriterion
from outlier_atlas.criteria.systematic_outliers.tables import DESCRIPTION, SYSTEMATIC_OUTLIERS
from outlier_atlas.data.classes import token_class
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.section import exactly
from outlier_atlas.statistics.sequences import WholeSequence
from outlier_atlas.statistics.tokens import TokenOutlier, above
from outlier_atlas.tables.table import Table


class SystematicOutliersMeasure(SequenceCriterion[TokenOutlier]):
    """Systematic outliers, with the class of each token."""

    description = DESCRIPTION

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

    def decider(self, layer: int) -> Callable[[WholeSequence], Iterator[TokenOutlier]]:
        return partial(systematic_outliers, ratio=self.context.settings.systematic_outliers.ratio)

    def tables(self) -> Iterator[tuple[Table, Columns]]:
        columns = outlier_columns(self.results, self.site, self.context.tokens, "mean")
        positions = columns["position"].tolist()
        places = zip(columns["token_text"], positions, columns["token_id"], strict=True)
        special = self.context.special_ids
        classes = [token_class(text, position, id in special) for text, position, id in places]
        yield SYSTEMATIC_OUTLIERS, columns | {"token_class": classes}


def systematic_outliers(sequence: WholeSequence, ratio: float) -> Iterator[TokenOutlier]:
    """Yield tokens whose largest |x| > `ratio` times the sequence's mean |x| (An et al. 2025).

    The comparison is in float64.
    """
    return above(sequence, ratio, sequence.mean)
