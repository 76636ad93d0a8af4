"""Table of criteria, with the number of findings of each measured criterion."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outlier_atlas.criteria.columns import Columns
from outlier_atlas.criteria.measure import CriterionMeasure, Finite, Measures


@dataclass(frozen=True)
class NotFinite:
    """Values that the numbers of a criterion exclude as not finite.

    Attributes:
        values: number of NaN and infinite values at the sites of the criterion. For experts, it is
            the number of tokens with such a value in an output.
        layers: layers that the criterion could not evaluate, ascending.
        all_layers: whether the criterion could evaluate no layer.
    """

    values: int
    layers: tuple[int, ...]
    all_layers: bool


def criteria_columns(measures: Measures) -> Columns:
    """Return the columns of the table `criteria`."""
    by_site: dict[str, list[Finite]] = defaultdict(list)
    for finite in (finite for measure in measures for finite in measure.finite()):
        by_site[finite.site].append(finite)
    each = [
        (measure, _not_finite(measure, by_site) if measure.criterion.measured else None)
        for measure in measures
        if isinstance(measure, CriterionMeasure)
    ]
    criteria = [measure.criterion for measure, _ in each]
    return {
        "criterion": [c.name for c in criteria],
        "measured": [c.measured for c in criteria],
        "sites": [" ".join(c.sites) for c in criteria],
        "missing_sites": [" ".join(c.missing) for c in criteria],
        "findings": [
            measure.findings() if left_out and not left_out.all_layers else None
            for measure, left_out in each
        ],
        "not_finite": [left_out.values if left_out else None for _, left_out in each],
        "layers_not_finite": [
            " ".join(map(str, left_out.layers)) if left_out else "" for _, left_out in each
        ],
        "definition": [c.definition for c in criteria],
    }


def _not_finite(measure: CriterionMeasure, by_site: Mapping[str, Sequence[Finite]]) -> NotFinite:
    values = 0
    lacking: dict[int, list[bool]] = defaultdict(list)
    for finite in (f for site in measure.criterion.sites for f in by_site.get(site, ())):
        values += finite.left_out
        lacking[finite.layer].append(finite.left_out > 0 and not finite.some)
    enough = all if measure.any_site else any
    layers = sorted(layer for layer, of_sites in lacking.items() if enough(of_sites))
    return NotFinite(values, tuple(layers), bool(layers) and len(layers) == len(lacking))
