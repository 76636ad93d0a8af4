"""Alarms of the report on NaN and infinite values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from outlier_atlas.criteria.show import Finiteness
from outlier_atlas.settings.sites import SITES
from outlier_atlas.text import layers, listed

BySite = Mapping[str, Sequence[Finiteness]]

ORDER: dict[str, int] = {site: place for place, site in enumerate(SITES)}
"""Index of each site in the order of a block."""


def alarms(counted: Iterable[Finiteness], dtype: str) -> list[str]:
    """Return sentences on values that are not finite: their places and the likely cause.

    Args:
        counted: counts of the criteria, in any order of sites.
        dtype: dtype of the forward pass.
    """
    by_site: dict[str, list[Finiteness]] = defaultdict(list)
    for each in sorted(counted, key=lambda finiteness: ORDER[finiteness.site]):
        if each.nan or each.infinite:
            by_site[each.site].append(each)
    if not by_site:
        return []
    counts = [_counts(site, affected) for site, affected in by_site.items()]
    lost = _lost(by_site)
    cause = _cause(by_site, dtype)
    return [f"{lost} {cause}", *counts] if lost else [*counts, cause]


def _lost(affected: BySite) -> str:
    """Return a sentence on layers without a finite value, grouped by equal layers, or ""."""
    sites: dict[str, list[str]] = defaultdict(list)
    for site, rows in affected.items():
        finite = {row.layer for row in rows if row.some}
        without = {row.layer for row in rows} - finite
        if without:
            sites[layers(without)].append(site)
    if not sites:
        return ""
    where = "; ".join(f"{these} at {listed(at)}" for these, at in sites.items())
    return f"No value is finite in {where}: nothing could be measured there."


def _counts(site: str, rows: Sequence[Finiteness]) -> str:
    nan, infinite = sum(row.nan for row in rows), sum(row.infinite for row in rows)
    return (
        f"{site} holds {nan:,} NaN and {infinite:,} infinite values, in "
        f"{layers(row.layer for row in rows)}: every number here leaves them out."
    )


def _cause(affected: BySite, dtype: str) -> str:
    """Return a sentence on the first value that is not finite, and the likely cause."""
    # The sites are in the order of a block, so `min` returns the first site of the layer.
    first_row = min((row for rows in affected.values() for row in rows), key=lambda row: row.layer)
    first = f"The first are at {first_row.site} of layer {first_row.layer}."
    if dtype == "float16":
        return (
            f"{first} The model ran in float16, whose largest number is 65,504: larger values "
            f"become infinite, and NaN behind that. Run it in bfloat16 or float32 (model.dtype)."
        )
    return (
        f"{first} The model ran in {dtype}, which reaches 3.4e38, so an overflow is unlikely: look "
        f"for weights that are not finite (weights.measure, column not_finite of tables/weights)."
    )
