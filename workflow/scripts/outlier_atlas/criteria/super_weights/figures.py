"""The figure of super weights: the largest inputs and outputs of the down projections."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlier_atlas import tables
from outlier_atlas.criteria.figure import Drawing, FigureKind
from outlier_atlas.criteria.super_weights.tables import SUPER_WEIGHTS
from outlier_atlas.criteria.tables import CRITERIA
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.sites import SUPER_WEIGHT_SITES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from outlier_atlas.report.theme import Theme

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
            yield Drawing(OUTPUT, partial(_down_projections, dense), excluded=excluded)


def _down_projections(rows: Sequence[Row], figure: Figure, theme: Theme) -> None:
    from outlier_atlas.report import lines

    inputs, outputs = ([abs(row[column]) for row in rows] for column in ("input", "output"))
    drawn = [
        lines.Line("largest |input| at that token", inputs, theme.top[1], "s"),
        lines.Line("largest |output|", outputs, theme.top[0], "o"),
    ]
    axes = lines.plot(figure, [row["layer"] for row in rows], drawn, theme)
    if lines.has_values(drawn):
        lines.make_logarithmic(axes)
    for row in rows:
        if row["super_weight"]:
            axes.annotate(
                f"[{row['row']}, {row['column']}]", (row["layer"], abs(row["output"])),
                xytext=(6, 2), textcoords="offset points", color=theme.median, fontsize=9,
            )  # fmt: skip
    axes.set_ylabel("largest |x| at down_proj")
