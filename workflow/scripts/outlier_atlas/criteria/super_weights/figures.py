"""The figure of super weights: the largest inputs and outputs of the down projections."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from outlier_atlas import tables
from outlier_atlas.criteria.figure import Drawing, FigureKind, Line, Lines
from outlier_atlas.criteria.super_weights.tables import SUPER_WEIGHTS
from outlier_atlas.criteria.tables import CRITERIA
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.sites import SUPER_WEIGHT_SITES

Row = dict[str, Any]

OUTPUT = SUPER_WEIGHT_SITES[1]


class DownProjections(FigureKind):
    """The largest output of each layer with the largest input at its token, and super weights."""

    name = "down_proj"
    declared = (OUTPUT,)

    def sites(self, measured: Collection[str], detection: DetectionSettings) -> list[str]:
        return [OUTPUT] if set(SUPER_WEIGHT_SITES) <= set(measured) else []

    def drawings(self, tables_folder: Path) -> Iterator[Drawing]:
        criteria = tables.read(tables_folder, CRITERIA).to_pylist()
        own = next(row for row in criteria if row["criterion"] == "super_weights")
        if own["measured"] and OUTPUT in own["sites"].split():
            rows = tables.read(tables_folder, SUPER_WEIGHTS).to_pylist()
            dense = [row for row in rows if row["expert"] is None]
            excluded = tables.left_out(tables_folder, SUPER_WEIGHTS)
            yield Drawing(OUTPUT, _down_projections(dense), excluded)


def _down_projections(rows: Sequence[Row]) -> Lines:
    inputs, outputs = ([abs(row[column]) for row in rows] for column in ("input", "output"))
    drawn = [
        Line("largest |output|", outputs, "first", "o"),
        Line("largest |input| at that token", inputs, "second", "s"),
    ]
    notes = [
        (row["layer"], abs(row["output"]), f"[{row['row']}, {row['column']}]")
        for row in rows
        if row["super_weight"]
    ]
    layers = [row["layer"] for row in rows]
    return Lines(layers, drawn, "largest |x| at down_proj", notes=notes)
