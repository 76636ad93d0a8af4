"""The figures of a run. Equal tables give equal bytes: no date, no random ids."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from outlier_atlas import tables
from outlier_atlas.criteria.attention_sinks.tables import ATTENTION_SINK_HEADS
from outlier_atlas.criteria.experts.tables import EXPERT_MAGNITUDES
from outlier_atlas.criteria.layer_measures.tables import LAYER_MEASURES
from outlier_atlas.criteria.magnitudes.tables import CHANNEL_MAXIMA, LAYER_MAGNITUDES
from outlier_atlas.criteria.quantization_error.tables import QUANTIZATION_ERROR
from outlier_atlas.criteria.super_weights.tables import SUPER_WEIGHTS
from outlier_atlas.criteria.tables import CRITERIA
from outlier_atlas.files import write_whole
from outlier_atlas.report import heatmaps, lines
from outlier_atlas.report.theme import THEMES, Theme
from outlier_atlas.settings.sites import ATTN_SINK, EXPERT_OUT, SUPER_WEIGHT_SITES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("magnitudes", "maxima", "experts", "heads", "kurtosis", "down_proj", "quantization")
OF_SITE: dict[str, tuple[str, ...]] = {EXPERT_OUT: ("experts",), ATTN_SINK: ("heads",)}
"""Of the sites without channels; the others have three."""


def names(sites: Sequence[str], quantized: Sequence[str] = ()) -> list[str]:
    """File names of all figures of a run, without folder.

    Args:
        sites: that are measured.
        quantized: those of them whose quantization error is.
    """
    kinds = [(site, kind) for site in sites for kind in _kinds(site)]
    if set(SUPER_WEIGHT_SITES) <= set(sites):
        kinds.append((SUPER_WEIGHT_SITES[1], "down_proj"))
    kinds += [(site, "quantization") for site in quantized if site in sites]
    return [
        f"{site}-{kind}{theme.suffix}.{ending}"
        for site, kind in kinds
        for theme in THEMES
        for ending in ("svg", "png")
    ]


def _kinds(site: str) -> tuple[str, ...]:
    return OF_SITE.get(site, ("magnitudes", "maxima", "kurtosis"))


def draw(folder: Path, tables_folder: Path) -> None:
    """Draw every figure of a run, light and dark, as SVG and PNG.

    Args:
        folder: for the figures.
        tables_folder: of the run.
    """
    magnitudes = tables.read(tables_folder, LAYER_MAGNITUDES).to_pylist()
    maxima = tables.read(tables_folder, CHANNEL_MAXIMA)
    below = tables.left_out(tables_folder, CHANNEL_MAXIMA)
    for site in dict.fromkeys(row["site"] for row in magnitudes):
        rows = [row for row in magnitudes if row["site"] == site]
        largest, layers = _grid(maxima, site)
        for theme in THEMES:
            with _figure(folder / f"{site}-magnitudes{theme.suffix}", theme, 4.0, below) as figure:
                lines.magnitudes(figure, rows, site, theme)
            height = min(8.0, 1.8 + 0.08 * len(layers))
            with _figure(folder / f"{site}-maxima{theme.suffix}", theme, height, below) as figure:
                heatmaps.maxima(figure, largest, layers, "channel", "largest |x|", theme)
    experts = tables.read(tables_folder, EXPERT_MAGNITUDES)
    if len(experts):
        _draw_experts(folder, experts, below)
    heads = tables.read(tables_folder, ATTENTION_SINK_HEADS)
    if len(heads):
        _draw_heads(folder, heads)
    _draw_lines(folder, tables_folder, below)


def _draw_lines(folder: Path, tables_folder: Path, below: str) -> None:
    def rows_of(table: tables.Table) -> dict[str, list[dict[str, Any]]]:
        by_site = defaultdict(list)
        for row in tables.read(tables_folder, table).to_pylist():
            by_site[row["site"]].append(row)
        return by_site

    for kind, drawn, table in (
        ("kurtosis", lines.kurtosis, LAYER_MEASURES),
        ("quantization", lines.quantization, QUANTIZATION_ERROR),
    ):
        for site, rows in rows_of(table).items():
            for theme in THEMES:
                path = folder / f"{site}-{kind}{theme.suffix}"
                with _figure(path, theme, 4.0, below) as figure:
                    drawn(figure, rows, theme)
    criteria = tables.read(tables_folder, CRITERIA).to_pylist()
    sites = next(row["sites"] for row in criteria if row["criterion"] == "super_weights").split()
    measured = any(row["criterion"] == "super_weights" and row["measured"] for row in criteria)
    if measured and SUPER_WEIGHT_SITES[1] in sites:
        rows = tables.read(tables_folder, SUPER_WEIGHTS).to_pylist()
        weights = [row for row in rows if row["expert"] is None]
        for theme in THEMES:
            path = folder / f"{SUPER_WEIGHT_SITES[1]}-down_proj{theme.suffix}"
            with _figure(path, theme, 4.0, below) as figure:
                lines.down_proj(figure, weights, theme)


def _draw_heads(folder: Path, heads: Any) -> None:
    mean, layers = _by_layer(heads, "mean")
    height = min(8.0, 1.8 + 0.08 * len(layers))
    for theme in THEMES:
        with _figure(folder / f"{ATTN_SINK}-heads{theme.suffix}", theme, height) as figure:
            heatmaps.attention(figure, mean, layers, theme)


def _draw_experts(folder: Path, experts: Any, below: str) -> None:
    largest, layers = _by_layer(experts)
    height = min(8.0, 1.8 + 0.08 * len(layers))
    for theme in THEMES:
        path = folder / f"{EXPERT_OUT}-experts{theme.suffix}"
        with _figure(path, theme, height, below) as figure:
            value = "largest |down_proj output|"
            heatmaps.maxima(figure, largest, layers, "expert", value, theme)


@contextmanager
def _figure(path: Path, theme: Theme, height: float, below: str = "") -> Iterator[Figure]:
    import matplotlib as mpl

    settings = {
        "svg.hashsalt": "outlier-atlas",
        "svg.fonttype": "path",
        "text.parse_math": False,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": theme.faint,
        "axes.labelcolor": theme.text,
        "text.color": theme.text,
        "xtick.color": theme.text,
        "ytick.color": theme.text,
        "axes.facecolor": theme.background,
        "figure.facecolor": theme.background,
    }
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(settings):
        figure = Figure(figsize=(9.6, height), layout="constrained")
        FigureCanvasAgg(figure)
        if below:
            figure.supxlabel(shorten(below, 140, placeholder=" …"), fontsize=8)
        yield figure
        for ending, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            content = io.BytesIO()
            figure.savefig(content, format=ending, dpi=144, metadata=metadata)
            figure.set_layout_engine("none")  # laid out once, and the same in both files
            write_whole(path.with_name(f"{path.name}.{ending}"), content.getvalue())


def _grid(maxima: Any, site: str) -> tuple[NDArray[np.float64], list[int]]:
    """Largest |x| as (layer, channel), NaN where there is none, and the layers."""
    return _by_layer(maxima.filter(pc.field("site") == site))


def _by_layer(table: Any, column: str = "value") -> tuple[NDArray[np.float64], list[int]]:
    layers = np.unique(table["layer"].to_numpy())
    values = np.abs(table[column].to_numpy(zero_copy_only=False).astype(np.float64))
    return values.reshape(len(layers), -1), layers.tolist()
