"""Massive activations in the report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outlier_atlas import tables
from outlier_atlas.criteria.massive_activations.tables import MASSIVE_ACTIVATIONS
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.report import criteria
from outlier_atlas.report.findings import Evidence, closest_to_massive
from outlier_atlas.report.text import ranges, shown
from outlier_atlas.settings.report import ReportSettings

Row = dict[str, Any]


def section(
    report: ReportSettings, tables_folder: Path, evidence: Evidence, tokens: TokenStore
) -> Row:
    """The section of massive activations: by channel, and by place with the text around it.

    Args:
        tables_folder: of the run.
    """
    by_channel: dict[int, list[Row]] = defaultdict(list)
    for row in evidence.massive:
        by_channel[row["channel"]].append(row)
    channels = sorted(
        (
            _channel(rows) | {"sequences": evidence.sequences_of[channel]}
            for channel, rows in by_channel.items()
        ),
        key=lambda r: (-abs(r["value"]), r["channel"]),
    )
    activations = tables.read(tables_folder, MASSIVE_ACTIVATIONS)
    places = sorted(
        criteria.joined(activations.to_pylist()),
        key=lambda row: (-abs(row["value"]), row["token_index"], row["channel"]),
    )
    in_text = [row | _context(report, tokens, row["token_index"]) for row in places[: report.rows]]
    measured = evidence.criteria["massive_activations"]["measured"]
    return {
        "criterion": evidence.criteria["massive_activations"],
        "channels": channels[: report.rows],
        "channels_shown": shown(len(channels), report.rows, "channel"),
        "places": in_text,
        "places_shown": shown(len(places), report.rows, "place"),
        "sequences": tokens.sequences,
        "closest": closest_to_massive(evidence).text if measured else "",
    }


def _channel(rows: Sequence[Row]) -> Row:
    """A channel's massive activations, over its layers."""
    top = max(rows, key=lambda row: abs(row["value"]))
    total = sum(row["massive_activations"] for row in rows)
    first = sum(row["massive_activations"] * row["first_position_share"] for row in rows)
    return top | {
        "layers": ranges(row["layer"] for row in rows),
        "massive_activations": total,
        "first_position_share": first / total,
    }


def _context(report: ReportSettings, tokens: TokenStore, index: int) -> Row:
    if report.text != "full":
        return {"before": "", "text": "", "after": ""}
    around = report.context_tokens
    before, text, after = tokens.window(index, around, around)
    return {"before": before, "text": text, "after": after}
