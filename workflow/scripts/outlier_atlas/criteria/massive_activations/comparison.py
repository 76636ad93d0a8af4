"""Comparison of massive activations between two runs: channels that appear, vanish or move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outlier_atlas.criteria.massive_activations.tables import DESCRIPTION, MASSIVE_CHANNELS
from outlier_atlas.report.compared_runs import Both, Side
from outlier_atlas.sanitize import visible
from outlier_atlas.text import layers, number, percent, spanned

Row = dict[str, Any]


def values(both: Both) -> Row:
    """Return the values for the template."""
    channels = _channels(both)
    measured = all(side.criterion(DESCRIPTION.name)["measured"] for side in both)
    return {"said": _sentence(channels, both[1].name) if measured else "", "channels": channels}


def _channels(both: Both) -> list[Row]:
    """Return the channels with massive activations in either run, differing channels first."""
    here, there = (_by_channel(side) for side in both)
    rows = [
        {"channel": channel, "change": change(here.get(channel), there.get(channel))}
        | {"sides": [_massive(side.get(channel)) for side in (here, there)]}
        for channel in sorted({*here, *there})
    ]
    return sorted(rows, key=lambda row: (row["change"] == "in both", row["channel"]))


def _by_channel(side: Side) -> dict[int, list[Row]]:
    by_channel: dict[int, list[Row]] = {}
    for row in side.rows(MASSIVE_CHANNELS):
        by_channel.setdefault(row["channel"], []).append(row)
    return by_channel


def change(here: Sequence[Row] | None, there: Sequence[Row] | None) -> str:
    """Return how a channel differs between two runs.

    Args:
        here: rows of the channel in `massive_channels` of this run.
        there: rows of the channel in `massive_channels` of the other run.
    """
    if not here or not there:
        return "only here" if here else "only there"
    common = {row["layer"] for row in here} & {row["layer"] for row in there}
    first = [_first_share(rows) > 0.5 for rows in (here, there)]
    return "in both" if common and first[0] == first[1] else "moves"


def _first_share(rows: Sequence[Row]) -> float:
    """Return the share of a channel's massive activations that are at the first position."""
    counts = [row["massive_activations"] for row in rows]
    at_first = sum(n * row["first_position_share"] for n, row in zip(counts, rows, strict=True))
    return float(at_first / sum(counts))


def _massive(rows: Sequence[Row] | None) -> Row | None:
    if not rows:
        return None
    largest = max(rows, key=lambda row: abs(row["value"]))
    return {
        "layers": layers(row["layer"] for row in rows),
        "largest": spanned(largest, "value", number),
        "layer": largest["layer"],
        "first": percent(_first_share(rows)),
    }


def _sentence(channels: Sequence[Row], name: str) -> str:
    changes = [row["change"] for row in channels]
    return (
        f"Channels with massive activations: {changes.count('in both')} in both runs, "
        f"{changes.count('moves')} that move, {changes.count('only here')} in this run alone, "
        f"{changes.count('only there')} in {visible(name)} alone."
    )
