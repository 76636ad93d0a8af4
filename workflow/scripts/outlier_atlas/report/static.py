"""Figures as files, by matplotlib: SVG and PNG, whose texts look the same everywhere."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from outlier_atlas.criteria.figure import Drawing, Heatmap, Lines
from outlier_atlas.files import write_whole
from outlier_atlas.report import pixels
from outlier_atlas.report.theme import Theme

NUMBERS = "{x:,.12g}"
"""Number format of a logarithmic axis: 1,000,000 and 0.01, without exponents."""


def save(path: Path, drawing: Drawing, theme: Theme) -> None:
    """Draw a figure in the colours of a theme, and save it as SVG and PNG.

    Args:
        path: path of the files, without extension.
        drawing: the figure.
        theme: colours of the figure.
    """
    with _figure(path, theme, drawing.height, drawing.footnote) as figure:
        if isinstance(drawing.plot, Lines):
            _lines(drawing.plot, figure, theme)
        else:
            _heatmap(drawing.plot, figure, theme)


@contextmanager
def _figure(path: Path, theme: Theme, height: float, footnote: str) -> Iterator[Figure]:
    """Yield an empty figure in the colours of a theme, and save it at the end of the block."""
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
    with mpl.rc_context(settings):
        figure = Figure(figsize=(9.6, height), layout="constrained")
        FigureCanvasAgg(figure)
        if footnote:
            figure.supxlabel(footnote, fontsize=8)
        yield figure
        for ending, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            content = io.BytesIO()
            figure.savefig(content, format=ending, dpi=144, metadata=metadata)
            # Both files have the same layout.
            figure.set_layout_engine("none")
            write_whole(path.with_name(f"{path.name}.{ending}"), content.getvalue())


def _lines(plot: Lines, figure: Figure, theme: Theme) -> None:
    axes = figure.add_subplot()
    handles: list[Any] = []
    for line in reversed(plot.lines):
        values = [np.nan if value is None else value for value in line.values]
        handles += axes.plot(
            plot.layers, values, line.marker, ms=4, ls="--" if line.dashed else "-", lw=1.3,
            color=theme.colours[line.colour], label=line.label or "_",
        )  # fmt: skip
    handles = [each for each in handles[::-1] if each.get_label() != "_"]
    axes.grid(axis="y", color=theme.faint, lw=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for layer in sorted(plot.not_finite):
        span = axes.axvspan(
            layer - 0.5, layer + 0.5, color=theme.faint, lw=0, label="nothing finite"
        )
        handles = [*(each for each in handles if each.get_label() != "nothing finite"), span]
    if plot.is_logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(NUMBERS)
    axes.set_ylabel(plot.value)
    axes.legend(
        handles=handles, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1),
        borderaxespad=0.2, handletextpad=0.4, columnspacing=1.4,
    )  # fmt: skip
    if plot.title:
        axes.set_title(plot.title, loc="right", fontsize=10)
    for layer, value, text in plot.notes:
        axes.annotate(
            text, (layer, value), xytext=(6, 2), textcoords="offset points",
            color=theme.contrast, fontsize=9,
        )  # fmt: skip


def _heatmap(plot: Heatmap, figure: Figure, theme: Theme) -> None:
    axes = figure.add_subplot()
    scaled = pixels.scaled(plot)
    if scaled is None:
        axes.text(0.5, 0.5, "no finite value above zero", ha="center", transform=axes.transAxes)
        return
    kind = LogNorm if plot.logarithmic else Normalize
    layers, columns = plot.values.shape
    image = axes.imshow(
        scaled.shown, aspect="auto", origin="lower", interpolation="nearest", cmap="magma",
        norm=kind(scaled.low, scaled.high, clip=plot.logarithmic),
        extent=(-0.5, columns - 0.5, -0.5, layers - 0.5),
    )  # fmt: skip
    _finish(figure, axes, image, plot)
    axes.set_xlabel(pixels.column_label(plot, scaled))
    if plot.logarithmic:
        for row in pixels.empty_rows(plot):
            axes.axhspan(row - 0.5, row + 0.5, facecolor="none", edgecolor=theme.faint, hatch="///")
        _label_columns(axes, pixels.peaks(plot.values), theme)


def _finish(figure: Figure, axes: Axes, image: Any, plot: Heatmap) -> None:
    """Add the colour bar and the layer axis."""
    numbers = NUMBERS if plot.logarithmic else "{x:g}"
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.04, format=numbers)
    bar.set_label(plot.value)
    bar.outline.set_visible(False)
    at = range(0, len(plot.layers), -(-len(plot.layers) // 12))
    axes.set_yticks(at, [str(plot.layers[tick]) for tick in at])
    axes.set_ylabel("layer")


def _label_columns(axes: Axes, columns: list[int], theme: Theme) -> None:
    top = axes.secondary_xaxis("top")
    top.set_xticks(columns, [str(column) for column in columns])
    top.tick_params(colors=theme.contrast, length=4)
    top.spines["top"].set_visible(False)
