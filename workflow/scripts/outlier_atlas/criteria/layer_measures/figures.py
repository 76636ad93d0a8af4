"""The figure of kurtosis by layer, in four variants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from outlier_atlas import tables
from outlier_atlas.criteria.figure import MARKERS, Drawing, FigureKind, Line, Lines
from outlier_atlas.criteria.layer_measures.tables import LAYER_MEASURES
from outlier_atlas.settings.sites import CHANNEL_SITES

Row = dict[str, Any]

VARIANTS = {
    "kurtosis_token": "per token, over channels",
    "kurtosis_tensor": "all values together",
    "kurtosis_channel": "per channel, over tokens",
    "kurtosis_rms": "of channels' RMS",
}
"""Labels of the columns that are drawn."""


class Kurtosis(FigureKind):
    """The kurtosis of each layer, in four variants."""

    name = "kurtosis"
    declared = CHANNEL_SITES

    def drawings(self, tables_folder: Path) -> Iterator[Drawing]:
        excluded = tables.left_out(tables_folder, LAYER_MEASURES)
        by_site: dict[str, list[Row]] = defaultdict(list)
        for row in tables.read(tables_folder, LAYER_MEASURES).to_pylist():
            by_site[row["site"]].append(row)
        for site, rows in by_site.items():
            yield Drawing(site, _kurtosis(rows), excluded)


def _kurtosis(rows: Sequence[Row]) -> Lines:
    colours = ("first", "second", "third", "contrast")
    drawn = [
        Line(label, [row[column] for row in rows], colour, marker)
        for (column, label), colour, marker in zip(VARIANTS.items(), colours, MARKERS, strict=False)
    ]
    # A layer without an RMS has no finite value. Constant values have an RMS but no kurtosis.
    not_finite = [row["layer"] for row in rows if row["rms"] is None]
    return Lines([row["layer"] for row in rows], drawn, "kurtosis", not_finite=not_finite)
