"""Comparison of the largest |x| of each site and layer between two runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlier_atlas.criteria.magnitudes.tables import LAYER_MAGNITUDES
from outlier_atlas.report.compared_runs import NOT_MEASURED, Both, Side
from outlier_atlas.settings.sites import SITE_NAMES
from outlier_atlas.text import number, spanned

Row = dict[str, Any]


def sites(both: Both) -> list[Row]:
    """Return a table for each site, with the largest |x| of each layer in both runs."""
    here, there = (_by_place(side) for side in both)
    names = dict.fromkeys(site for site, _ in {**here, **there})
    largest = max(names, key=lambda site: _top(here, site), default=None)
    return [
        {
            "name": site,
            "meaning": SITE_NAMES[site],
            "open": site == largest,
            "layers": [
                _layer(layer, here.get((site, layer)), there.get((site, layer)))
                for layer in sorted({layer for at, layer in {**here, **there} if at == site})
            ],
        }
        for site in names
    ]


def _by_place(side: Side) -> dict[tuple[str, int], Row]:
    return {(row["site"], row["layer"]): row for row in side.rows(LAYER_MAGNITUDES)}


def _top(places: Mapping[tuple[str, int], Row], site: str) -> float:
    return max((row["top1"] or 0.0 for (at, _), row in places.items() if at == site), default=0.0)


def _layer(layer: int, *both: Row | None) -> Row:
    channels = [row["channel"] if row else None for row in both]
    tops = [row["top1"] if row else None for row in both]
    return {
        "layer": layer,
        "sides": [_largest(row) for row in both],
        "channels": ["" if channel is None else channel for channel in channels],
        "other": None not in channels and channels[0] != channels[1],
        "ratio": number(tops[1] / tops[0]) if tops[0] and tops[1] is not None else "",
    }


def _largest(row: Row | None) -> str:
    if row is None:
        return NOT_MEASURED
    return "nothing finite" if row["top1"] is None else spanned(row, "top1", number)
