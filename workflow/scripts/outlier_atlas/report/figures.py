"""The figures of a run. Equal tables give equal bytes: no date, no random ids."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from outlier_atlas import tables
from outlier_atlas.files import write_whole
from outlier_atlas.report import lines
from outlier_atlas.report.text import SITE_NAMES
from outlier_atlas.settings.sites import ATTN_SINK, EXPERT_OUT, SUPER_WEIGHT_SITES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("magnitudes", "maxima", "experts", "heads", "kurtosis", "down_proj", "quantization")
OF_SITE: dict[str, tuple[str, ...]] = {EXPERT_OUT: ("experts",), ATTN_SINK: ("heads",)}
"""Of the sites without channels; the others have three."""
COLUMNS = 1152
"""Columns of a heatmap at most; of more channels each column shows the largest of some."""


@dataclass(frozen=True)
class Theme:
    """Colours of a figure; blue, orange and green of Okabe and Ito, told apart by everybody."""

    suffix: str
    background: str
    text: str
    faint: str
    top: tuple[str, str, str]
    median: str
    colormap: str


THEMES = (
    Theme(
        "", "#ffffff", "#1c2430", "#d8dee6", ("#0b5fa5", "#4a9ad4", "#a3cdea"), "#c25a00", "magma"
    ),
    Theme(
        "-dark",
        "#171b22",
        "#dde3ea",
        "#343c48",
        ("#8cc8f5", "#4a93cc", "#2a5f8c"),
        "#f0a050",
        "magma",
    ),
)


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
    magnitudes = tables.read(tables_folder, tables.LAYER_MAGNITUDES).to_pylist()
    maxima = tables.read(tables_folder, tables.CHANNEL_MAXIMA)
    for site in dict.fromkeys(row["site"] for row in magnitudes):
        rows = [row for row in magnitudes if row["site"] == site]
        largest, layers = _grid(maxima, site)
        for theme in THEMES:
            with _figure(folder / f"{site}-magnitudes{theme.suffix}", theme, 4.0) as figure:
                _draw_magnitudes(figure, rows, site, theme)
            height = min(8.0, 1.8 + 0.08 * len(layers))
            with _figure(folder / f"{site}-maxima{theme.suffix}", theme, height) as figure:
                _draw_maxima(figure, largest, layers, "channel", "largest |x|", theme)
    experts = tables.read(tables_folder, tables.EXPERT_MAGNITUDES)
    if len(experts):
        _draw_experts(folder, experts)
    heads = tables.read(tables_folder, tables.ATTENTION_SINK_HEADS)
    if len(heads):
        _draw_heads(folder, heads)
    _draw_lines(folder, tables_folder)


def _draw_lines(folder: Path, tables_folder: Path) -> None:
    def rows_of(table: tables.Table) -> dict[str, list[dict[str, Any]]]:
        by_site = defaultdict(list)
        for row in tables.read(tables_folder, table).to_pylist():
            by_site[row["site"]].append(row)
        return by_site

    for kind, drawn, table in (
        ("kurtosis", lines.kurtosis, tables.LAYER_MEASURES),
        ("quantization", lines.quantization, tables.QUANTIZATION_ERROR),
    ):
        for site, rows in rows_of(table).items():
            for theme in THEMES:
                with _figure(folder / f"{site}-{kind}{theme.suffix}", theme, 4.0) as figure:
                    drawn(figure, rows, theme)
    criteria = tables.read(tables_folder, tables.CRITERIA).to_pylist()
    if any(row["criterion"] == "super_weights" and row["measured"] for row in criteria):
        weights = tables.read(tables_folder, tables.SUPER_WEIGHTS).to_pylist()
        for theme in THEMES:
            path = folder / f"{SUPER_WEIGHT_SITES[1]}-down_proj{theme.suffix}"
            with _figure(path, theme, 4.0) as figure:
                lines.down_proj(figure, weights, theme)


def _draw_heads(folder: Path, heads: Any) -> None:
    mean, layers = _by_layer(heads, "mean")
    height = min(8.0, 1.8 + 0.08 * len(layers))
    for theme in THEMES:
        with _figure(folder / f"{ATTN_SINK}-heads{theme.suffix}", theme, height) as figure:
            axes = figure.add_subplot()
            image = axes.imshow(
                mean, aspect="auto", origin="lower", interpolation="nearest",
                cmap=theme.colormap, vmin=0, vmax=1,
            )  # fmt: skip
            _finish_heatmap(figure, axes, image, layers, "attention to the first token", "{x:g}")
            axes.set_xlabel("head")


def _draw_experts(folder: Path, experts: Any) -> None:
    largest, layers = _by_layer(experts)
    height = min(8.0, 1.8 + 0.08 * len(layers))
    for theme in THEMES:
        with _figure(folder / f"{EXPERT_OUT}-experts{theme.suffix}", theme, height) as figure:
            value = "largest |down_proj output|"
            _draw_maxima(figure, largest, layers, "expert", value, theme)


@contextmanager
def _figure(path: Path, theme: Theme, height: float) -> Iterator[Figure]:
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
        yield figure
        for ending, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            content = io.BytesIO()
            figure.savefig(content, format=ending, dpi=144, metadata=metadata)
            write_whole(path.with_name(f"{path.name}.{ending}"), content.getvalue())


def _draw_magnitudes(figure: Figure, rows: list[dict[str, Any]], site: str, theme: Theme) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    layers = [row["layer"] for row in rows]
    styles = [
        *zip(
            ("top1", "top2", "top3"),
            ("largest", "2nd", "3rd"),
            theme.top,
            ("o", "s", "^"),
            strict=True,
        ),
        ("median", "median", theme.median, "D"),
    ]
    for column, label, colour, marker in reversed(styles):
        # A logarithmic axis has no zero: such a point is left out, and the table has it.
        values = [row[column] if row[column] else np.nan for row in rows]
        axes.plot(layers, values, marker, ms=4.5, ls="-", lw=1.4, color=colour, label=label)
    if any(row["top1"] for row in rows):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lines.NUMBERS)
    axes.grid(axis="y", color=theme.faint, lw=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("layer")
    axes.set_ylabel(f"|x| at {site}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], frameon=False, ncols=4, loc="lower left",
        bbox_to_anchor=(0, 1), borderaxespad=0.2, handletextpad=0.4, columnspacing=1.4,
    )  # fmt: skip
    _name(axes, site)


def _draw_maxima(
    figure: Figure,
    largest: NDArray[np.float64],
    layers: list[int],
    column: str,
    value: str,
    theme: Theme,
) -> None:
    from matplotlib.colors import LogNorm

    axes = figure.add_subplot()
    shown, width = _pooled(largest)
    positive = shown[shown > 0]
    if not len(positive):
        axes.text(0.5, 0.5, "no finite value above zero", ha="center", transform=axes.transAxes)
        return
    # The smallest one in a hundred would spend the colours on what nobody looks for.
    low, high = float(np.percentile(positive, 1)), float(positive.max())
    norm = LogNorm(low, high if high > low else low * 10, clip=True)
    image = axes.imshow(
        np.where(shown > 0, shown, np.nan), aspect="auto", origin="lower", interpolation="nearest",
        cmap=theme.colormap, norm=norm,
        extent=(-0.5, largest.shape[1] - 0.5, -0.5, len(layers) - 0.5),
    )  # fmt: skip
    _finish_heatmap(figure, axes, image, layers, value, lines.NUMBERS)
    each = "" if width == 1 else f" (a column: the largest of {width})"
    axes.set_xlabel(f"{column}{each}")
    _label_columns(axes, largest, theme)


def _finish_heatmap(
    figure: Figure, axes: Axes, image: Any, layers: list[int], value: str, numbers: str
) -> None:
    """Its colours and its layers."""
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.04, format=numbers)
    bar.set_label(value)
    bar.outline.set_visible(False)
    ticks = range(0, len(layers), -(-len(layers) // 12))
    axes.set_yticks(ticks, [str(layers[tick]) for tick in ticks])
    axes.set_ylabel("layer")


def _label_columns(axes: Axes, largest: NDArray[np.float64], theme: Theme) -> None:
    """Name the channels or experts whose maximum stands out most, where there is room."""
    peaks = np.nan_to_num(largest).max(axis=0)
    room = largest.shape[1] / 22
    named: list[int] = []
    for channel in np.argsort(-peaks, kind="stable")[:40]:
        if len(named) < 6 and all(abs(int(channel) - other) > room for other in named):
            named.append(int(channel))
    top = axes.secondary_xaxis("top")
    top.set_xticks(named, [str(channel) for channel in named])
    top.tick_params(colors=theme.median, length=4)
    top.spines["top"].set_visible(False)


def _name(axes: Axes, site: str) -> None:
    axes.set_title(SITE_NAMES[site], loc="right", fontsize=10)


def _grid(maxima: Any, site: str) -> tuple[NDArray[np.float64], list[int]]:
    """Largest |x| as (layer, channel), NaN where there is none, and the layers."""
    return _by_layer(maxima.filter(pc.field("site") == site))


def _by_layer(table: Any, column: str = "value") -> tuple[NDArray[np.float64], list[int]]:
    layers = np.unique(table["layer"].to_numpy())
    values = np.abs(table[column].to_numpy(zero_copy_only=False).astype(np.float64))
    return values.reshape(len(layers), -1), layers.tolist()


def _pooled(largest: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Neighbouring channels, by their maximum, into at most `COLUMNS`; and how many into one.

    Left to the drawing, most channels of a wide model would be skipped, outliers among them.
    """
    width = -(-largest.shape[1] // COLUMNS)
    padding = -largest.shape[1] % width
    padded = np.pad(np.nan_to_num(largest), ((0, 0), (0, padding)))
    return padded.reshape(len(largest), -1, width).max(axis=2), width
