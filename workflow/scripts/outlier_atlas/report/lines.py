"""Figures of lines over layers: magnitudes, kurtosis, the down projection, quantization errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from outlier_atlas.settings.sites import SITE_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from outlier_atlas.report.theme import Theme

Row = dict[str, Any]

KURTOSIS = {
    "kurtosis_token": "per token, over channels",
    "kurtosis_tensor": "all values together",
    "kurtosis_channel": "per channel, over tokens",
    "kurtosis_rms": "of channels' RMS",
}
NUMBERS = "{x:,.12g}"
"""Format of a logarithmic axis: 1,000,000 and 0.01, without exponents."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Line:
    """Values over layers; None where there is none."""

    label: str
    values: Sequence[float | None]
    colour: str
    marker: str
    style: str = "-"


def magnitudes(figure: Figure, rows: list[dict[str, Any]], site: str, theme: Theme) -> None:
    """The three largest |x| and the median of each layer of a site."""
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
    _mark_not_finite(axes, [row["layer"] for row in rows if row["top1"] is None], theme)
    if any(row["top1"] for row in rows):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(NUMBERS)
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
    axes.set_title(SITE_NAMES[site], loc="right", fontsize=10)


def kurtosis(figure: Figure, rows: Sequence[Row], theme: Theme) -> None:
    """The four variants at one site; `rows` of layer_measures."""
    lines = [
        Line(label, [row[name] for row in rows], colour, marker)
        for (name, label), colour, marker in zip(
            KURTOSIS.items(), (*theme.top, theme.median), MARKERS, strict=False
        )
    ]
    axes = _lines(figure, [row["layer"] for row in rows], lines, theme)
    # Without an RMS there is no finite value; a kurtosis is missing of constants, too.
    without = [row["layer"] for row in rows if row["rms"] is None]
    _logarithmic(axes, lines)
    axes.set_ylabel("kurtosis")
    _mark_not_finite(axes, without, theme)
    _legend(axes)


def down_proj(figure: Figure, rows: Sequence[Row], theme: Theme) -> None:
    """Largest output by layer, the largest input at its token, and where super weights are.

    Args:
        rows: of super_weights, but for those of experts.
    """
    lines = [
        Line(
            "largest |input| at that token", [abs(row["input"]) for row in rows], theme.top[1], "s"
        ),
        Line("largest |output|", [abs(row["output"]) for row in rows], theme.top[0], "o"),
    ]
    axes = _lines(figure, [row["layer"] for row in rows], lines, theme)
    _logarithmic(axes, lines)
    for row in rows:
        if row["super_weight"]:
            axes.annotate(
                f"[{row['row']}, {row['column']}]", (row["layer"], abs(row["output"])),
                xytext=(6, 2), textcoords="offset points", color=theme.median, fontsize=9,
            )  # fmt: skip
    axes.set_ylabel("largest |x| at down_proj")


def quantization(figure: Figure, rows: Sequence[Row], theme: Theme) -> None:
    """SQNR of each format at one site; `rows` of quantization_error."""
    names = dict.fromkeys((row["format"], row["scale_of"]) for row in rows)
    colours = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a8a")
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    lines = [
        Line(
            f"{name}, {scale}" if kept == "quantized" else "_",
            [
                row["sqnr"]
                for row in rows
                if (row["format"], row["scale_of"], row["outlier_channels"]) == (name, scale, kept)
            ],
            colour,
            marker,
            style,
        )
        for (name, scale), colour, marker in zip(names, colours, MARKERS, strict=True)
        for kept, style in (("quantized", "-"), ("kept", "--"))
    ]
    axes = _lines(figure, layers, lines, theme)
    axes.set_ylabel("SQNR in dB")
    _mark_not_finite(axes, {row["layer"] for row in rows if not row["values"]}, theme)
    _legend(axes)


def _lines(figure: Figure, layers: Sequence[int], lines: Sequence[Line], theme: Theme) -> Axes:
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    for line in lines:
        values = [np.nan if value is None else value for value in line.values]
        axes.plot(
            layers, values, line.marker, ms=4, ls=line.style, lw=1.3, color=line.colour,
            label=line.label,
        )  # fmt: skip
    axes.grid(axis="y", color=theme.faint, lw=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return axes


def _legend(axes: Axes) -> None:
    axes.legend(
        frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2,
        handletextpad=0.4, columnspacing=1.4,
    )  # fmt: skip


def _mark_not_finite(axes: Axes, layers: Iterable[int], theme: Theme) -> None:
    """Mark the layers of which there is nothing to draw."""
    label = "nothing finite"
    for layer in sorted(layers):
        axes.axvspan(layer - 0.5, layer + 0.5, color=theme.faint, lw=0, label=label)
        label = "_"


def _logarithmic(axes: Axes, lines: Sequence[Line]) -> None:
    """A logarithmic axis has no zero: such a point is left out, and the table has it."""
    if any(value for line in lines for value in line.values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(NUMBERS)
