"""The figures of magnitudes: by layer, and by layer and channel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlier_atlas import tables
from outlier_atlas.criteria.figure import Drawing, FigureKind, heatmap_height
from outlier_atlas.criteria.magnitudes.tables import CHANNEL_MAXIMA, LAYER_MAGNITUDES
from outlier_atlas.settings.sites import CHANNEL_SITES, SITE_NAMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from outlier_atlas.report.theme import Theme

Row = dict[str, Any]


class Magnitudes(FigureKind):
    """The three largest |x| and the median of each layer."""

    name = "magnitudes"
    declared = CHANNEL_SITES

    def drawings(self, tables_folder: Path) -> Iterator[Drawing]:
        excluded = tables.left_out(tables_folder, LAYER_MAGNITUDES)
        by_site: dict[str, list[Row]] = defaultdict(list)
        for row in tables.read(tables_folder, LAYER_MAGNITUDES).to_pylist():
            by_site[row["site"]].append(row)
        for site, rows in by_site.items():
            yield Drawing(site, partial(_magnitudes, rows, site), excluded=excluded)


class ChannelMaxima(FigureKind):
    """The largest |x| of each channel in each layer."""

    name = "maxima"
    declared = CHANNEL_SITES

    def drawings(self, tables_folder: Path) -> Iterator[Drawing]:
        import pyarrow.compute as pc

        from outlier_atlas.report import heatmaps

        excluded = tables.left_out(tables_folder, CHANNEL_MAXIMA)
        maxima = tables.read(tables_folder, CHANNEL_MAXIMA)
        for site in map(str, dict.fromkeys(maxima["site"].to_pylist())):
            largest, layers = heatmaps.by_layer(maxima.filter(pc.field("site") == site), "value")
            draw = partial(
                heatmaps.logarithmic, largest, layers, column="channel", value="largest |x|"
            )
            yield Drawing(site, draw, heatmap_height(len(layers)), excluded)


def _magnitudes(rows: Sequence[Row], site: str, figure: Figure, theme: Theme) -> None:
    from outlier_atlas.report import lines

    largest = zip(
        ("top1", "top2", "top3"), ("largest", "2nd", "3rd"), theme.top, lines.MARKERS, strict=False
    )
    drawn = [
        # A logarithmic axis cannot show zero, so points at zero are omitted. The table has them.
        lines.Line(label, [row[column] or None for row in rows], colour, marker)
        for column, label, colour, marker in (*largest, ("median", "median", theme.median, "D"))
    ]
    # The largest values are drawn last, above the other lines.
    layers = [row["layer"] for row in rows]
    axes = lines.plot(figure, layers, drawn[::-1], theme, marker_size=4.5, width=1.4)
    lines.mark_not_finite(axes, [row["layer"] for row in rows if row["top1"] is None], theme)
    if any(row["top1"] for row in rows):
        lines.make_logarithmic(axes)
    axes.set_ylabel(f"|x| at {site}")
    lines.add_legend(axes, reverse=True)
    axes.set_title(SITE_NAMES[site], loc="right", fontsize=10)
