"""The figure of quantization errors by layer and format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from outlier_atlas import tables
from outlier_atlas.criteria.figure import MARKERS, Drawing, FigureKind, Line, Lines
from outlier_atlas.criteria.quantization_error.tables import QUANTIZATION_ERROR
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.sites import CHANNEL_SITES

Row = dict[str, Any]


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
            yield Drawing(site, _quantization_errors(rows), excluded)


def _quantization_errors(rows: Sequence[Row]) -> Lines:
    formats = dict.fromkeys((row["format"], row["scale_of"]) for row in rows)
    drawn = [
        Line(
            "" if dashed else f"{name}, {scale}",
            [
                row["sqnr"]
                for row in rows
                if (row["format"], row["scale_of"], row["outlier_channels"])
                == (name, scale, channels)
            ],
            f"line{number}",
            marker,
            dashed,
        )
        for number, ((name, scale), marker) in enumerate(zip(formats, MARKERS, strict=True), 1)
        for channels, dashed in (("quantized", False), ("kept", True))
    ]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    not_finite = {row["layer"] for row in rows if not row["values"]}
    return Lines(layers, drawn, "SQNR in dB", logarithmic=False, not_finite=not_finite)
