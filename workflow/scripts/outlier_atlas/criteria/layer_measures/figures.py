"""The figure of kurtosis by layer, in four variants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlier_atlas import tables
from outlier_atlas.criteria.figure import Drawing, FigureKind
from outlier_atlas.criteria.layer_measures.tables import LAYER_MEASURES
from outlier_atlas.settings.sites import CHANNEL_SITES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from outlier_atlas.report.theme import Theme

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
            yield Drawing(site, partial(_kurtosis, rows), excluded=excluded)


def _kurtosis(rows: Sequence[Row], figure: Figure, theme: Theme) -> None:
    from outlier_atlas.report import lines

    drawn = [
        lines.Line(label, [row[column] for row in rows], colour, marker)
        for (column, label), colour, marker in zip(
            VARIANTS.items(), (*theme.top, theme.median), lines.MARKERS, strict=False
        )
    ]
    axes = lines.plot(figure, [row["layer"] for row in rows], drawn, theme)
    if lines.has_values(drawn):
        lines.make_logarithmic(axes)
    axes.set_ylabel("kurtosis")
    # A layer without an RMS has no finite value. Constant values have an RMS but no kurtosis.
    lines.mark_not_finite(axes, [row["layer"] for row in rows if row["rms"] is None], theme)
    lines.add_legend(axes)
