"""The figure of quantization errors by layer and format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlier_atlas import tables
from outlier_atlas.criteria.figure import Drawing, FigureKind
from outlier_atlas.criteria.quantization_error.tables import QUANTIZATION_ERROR
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.sites import CHANNEL_SITES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from outlier_atlas.report.theme import Theme

Row = dict[str, Any]

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a8a")
"""Colours of the formats: Okabe and Ito, with a grey."""


class QuantizationErrors(FigureKind):
    """The signal to quantization noise of each format, with and without the outlier channels."""

    name = "quantization"
    declared = CHANNEL_SITES

    def sites(self, measured: Collection[str], detection: DetectionSettings) -> list[str]:
        return [site for site in detection.quantization_error.sites if site in measured]

    def drawings(self, tables_folder: Path) -> Iterator[Drawing]:
        excluded = tables.left_out(tables_folder, QUANTIZATION_ERROR)
        by_site: dict[str, list[Row]] = defaultdict(list)
        for row in tables.read(tables_folder, QUANTIZATION_ERROR).to_pylist():
            by_site[row["site"]].append(row)
        for site, rows in by_site.items():
            yield Drawing(site, partial(_quantization_errors, rows), excluded=excluded)


def _quantization_errors(rows: Sequence[Row], figure: Figure, theme: Theme) -> None:
    from outlier_atlas.report import lines

    formats = dict.fromkeys((row["format"], row["scale_of"]) for row in rows)
    drawn = [
        lines.Line(
            f"{name}, {scale}" if channels == "quantized" else "_",
            [
                row["sqnr"]
                for row in rows
                if (row["format"], row["scale_of"], row["outlier_channels"])
                == (name, scale, channels)
            ],
            colour,
            marker,
            style,
        )
        for (name, scale), colour, marker in zip(formats, COLOURS, lines.MARKERS, strict=True)
        for channels, style in (("quantized", "-"), ("kept", "--"))
    ]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    axes = lines.plot(figure, layers, drawn, theme)
    axes.set_ylabel("SQNR in dB")
    lines.mark_not_finite(axes, {row["layer"] for row in rows if not row["values"]}, theme)
    lines.add_legend(axes)
