"""What the report says of values that are NaN or infinite, before anything else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from outlier_atlas.settings.sites import SITES
from outlier_atlas.text import layers, listed

Row = dict[str, Any]
BySite = Mapping[str, Sequence[Row]]


def alarms(by_site: BySite, dtype: str) -> list[str]:
    """What is not finite, where, and the likely cause.

    Args:
        by_site: rows with `layer`, `nan`, `infinite`, and `some`: whether a value is finite.
        dtype: that the model ran in.
    """
    affected = {
        site: [row for row in rows if row["nan"] or row["infinite"]]
        for site, rows in by_site.items()
    }
    affected = {site: rows for site, rows in affected.items() if rows}
    if not affected:
        return []
    counts = [_counts(site, rows) for site, rows in affected.items()]
    lost = _lost(affected)
    cause = _cause(affected, dtype)
    return [f"{lost} {cause}", *counts] if lost else [*counts, cause]


def _lost(affected: BySite) -> str:
    """The layers of which nothing is known, sites of the same ones together."""
    sites: dict[str, list[str]] = defaultdict(list)
    for site, rows in affected.items():
        finite = {row["layer"] for row in rows if row["some"]}
        without = {row["layer"] for row in rows} - finite
        if without:
            sites[layers(without)].append(site)
    if not sites:
        return ""
    where = "; ".join(f"{these} at {listed(at)}" for these, at in sites.items())
    return f"No value is finite in {where}: nothing could be measured there."


def _counts(site: str, rows: Sequence[Row]) -> str:
    nan, infinite = sum(r["nan"] for r in rows), sum(r["infinite"] for r in rows)
    return (
        f"{site} holds {nan:,} NaN and {infinite:,} infinite values, in "
        f"{layers(row['layer'] for row in rows)}: every number here leaves them out."
    )


def _cause(affected: BySite, dtype: str) -> str:
    """Where the first of them is, and what is likely behind it."""
    layer, site = min(
        ((row["layer"], site) for site, rows in affected.items() for row in rows),
        key=lambda place: (place[0], SITES.index(place[1])),
    )
    first = f"The first are at {site} of layer {layer}."
    if dtype == "float16":
        return (
            f"{first} The model ran in float16, whose largest number is 65,504: larger values "
            f"become infinite, and NaN behind that. Run it in bfloat16 or float32 (model.dtype)."
        )
    return (
        f"{first} The model ran in {dtype}, which reaches 3.4e38, so an overflow is unlikely: look "
        f"for weights that are not finite (weights.measure, column not_finite of tables/weights)."
    )
