"""The alarms of the report: values that are NaN or infinite, before anything else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from outlier_atlas.criteria.show import Finiteness
from outlier_atlas.settings.sites import SITES
from outlier_atlas.text import layers, listed

BySite = Mapping[str, Sequence[Finiteness]]

ORDER: dict[str, int] = {site: place for place, site in enumerate(SITES)}
"""The place of each site in a block."""


def alarms(counted: Iterable[Finiteness], dtype: str) -> list[str]:
    """Return sentences on what is not finite, where, and the likely cause.

    Args:
        counted: what the criteria counted, in any order of sites.
        dtype: that the model ran in.
    """
    by_site: dict[str, list[Finiteness]] = defaultdict(list)
    for each in sorted(counted, key=lambda one: ORDER[one.site]):
        if each.nan or each.infinite:
            by_site[each.site].append(each)
    if not by_site:
        return []
    counts = [_counts(site, affected) for site, affected in by_site.items()]
    lost = _lost(by_site)
    cause = _cause(by_site, dtype)
    return [f"{lost} {cause}", *counts] if lost else [*counts, cause]


def _lost(affected: BySite) -> str:
    """Return a sentence on the layers without a finite value, sites of equal layers together."""
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
    """Return where the first of them is, and the likely cause."""
    # The sites are in the order of the block: of one layer the first comes first.
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
