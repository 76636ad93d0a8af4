"""Token outliers of PrefixQuant."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial

import numpy as np

from outlier_atlas.criteria.columns import Columns, outlier_columns
from outlier_atlas.criteria.sequence_criterion import SequenceCriterion
from outlier_atlas.criteria.token_outliers.tables import DESCRIPTION, TOKEN_OUTLIERS
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.section import exactly
from outlier_atlas.statistics.sequences import WholeSequence
from outlier_atlas.statistics.tokens import TokenOutlier, above
from outlier_atlas.tables.table import Table


class TokenOutliersMeasure(SequenceCriterion[TokenOutlier]):
    """Token outliers of PrefixQuant."""

    description = DESCRIPTION

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

    def decider(self, layer: int) -> Callable[[WholeSequence], Iterator[TokenOutlier]]:
        return partial(token_outliers, ratio=self.context.settings.token_outliers.ratio)

    def tables(self) -> Iterator[tuple[Table, Columns]]:
        columns = outlier_columns(self.results, self.site, self.context.tokens, "median")
        yield TOKEN_OUTLIERS, columns


def token_outliers(sequence: WholeSequence, ratio: float) -> Iterator[TokenOutlier]:
    """Yield the token outliers of a sequence (PrefixQuant, Chen et al. 2024, arXiv 2410.05265).

    The largest |x| of such a token exceeds `ratio` times the median, over the tokens of the
    sequence, of their largest |x|.

    The median is the lower of the two middle values. The comparison is in float64.
    """
    largest = np.sort(np.abs(sequence.token_values[sequence.token_channels >= 0]))
    median = float(largest[(len(largest) - 1) // 2]) if len(largest) else float("nan")
    return above(sequence, ratio, median)
