"""The figures of magnitudes: by layer, and by layer and channel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from outlier_atlas import tables
from outlier_atlas.criteria.figure import MARKERS, Drawing, FigureKind, Heatmap, Line, Lines
from outlier_atlas.criteria.magnitudes.tables import CHANNEL_MAXIMA, LAYER_MAGNITUDES
from outlier_atlas.settings.sites import CHANNEL_SITES, SITE_NAMES

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
            yield Drawing(site, _magnitudes(rows, site), excluded)


class ChannelMaxima(FigureKind):
    """The largest |x| of each channel in each layer."""

    name = "maxima"
    declared = CHANNEL_SITES

    def drawings(self, tables_folder: Path) -> Iterator[Drawing]:
        import pyarrow.compute as pc

        excluded = tables.left_out(tables_folder, CHANNEL_MAXIMA)
        maxima = tables.read(tables_folder, CHANNEL_MAXIMA)
        for site in map(str, dict.fromkeys(maxima["site"].to_pylist())):
            of_site = maxima.filter(pc.field("site") == site)
            yield Drawing(site, Heatmap.of(of_site, "value", "channel", "largest |x|"), excluded)


def _magnitudes(rows: Sequence[Row], site: str) -> Lines:
    described = [
        ("top1", "largest", "first"), ("top2", "2nd", "second"), ("top3", "3rd", "third"),
        ("median", "median", "contrast"),
    ]  # fmt: skip
    return Lines(
        [row["layer"] for row in rows],
        [
            Line(label, [row[column] for row in rows], colour, marker)
            for (column, label, colour), marker in zip(described, MARKERS, strict=False)
        ],
        f"|x| at {site}",
        not_finite=[row["layer"] for row in rows if row["top1"] is None],
        title=SITE_NAMES[site],
    )
