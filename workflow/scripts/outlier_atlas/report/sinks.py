"""The report's section on attention sinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outlier_atlas.report.text import count, percentage, shown, spanned

Row = dict[str, Any]


def section(
    criterion: Row, layers: Sequence[Row], positions: Sequence[Row], most: int
) -> Mapping[str, Any]:
    """What the section shows.

    Args:
        criterion: its row of `criteria`.
        layers: rows of `attention_sinks`, by layer.
        positions: rows of `attention_sink_positions`, by position.
        most: rows that each table shows.
    """
    by_metric = sorted(positions, key=lambda row: (-(row["sink_metric"] or 0), row["position"]))
    return {
        "criterion": criterion,
        "said": said(layers, positions) if layers else "",
        "layers": layers[:most],
        "layers_shown": shown(len(layers), most, "layer"),
        "positions": by_metric[: min(most, 5)],
    }


def said(layers: Sequence[Row], positions: Sequence[Row]) -> str:
    """How often the first token is a sink, in a sentence."""
    metric = positions[0]["sink_metric"]
    if metric is None:
        return "No number of this run is finite."
    layers = [row for row in layers if row["sink_metric"] is not None]
    heads = sum(row["heads"] for row in layers)
    sinking = sum(row["sink_heads"] for row in layers)
    share = spanned(positions[0], "sink_metric", percentage)
    return (
        f"The first token is a sink in {share} of all (sequence, layer, head), and on average over "
        f"the sequences in {sinking:,} of {count(heads, 'head')}."
    )
