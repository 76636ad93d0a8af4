"""Line plots over layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from outlier_atlas.report.theme import Theme

NUMBERS = "{x:,.12g}"
"""Number format of a logarithmic axis: 1,000,000 and 0.01, without exponents."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Line:
    """A line of values over layers; None for a layer without a value."""

    label: str
    values: Sequence[float | None]
    colour: str
    marker: str
    style: str = "-"


def plot(
    figure: Figure,
    layers: Sequence[int],
    lines: Sequence[Line],
    theme: Theme,
    marker_size: float = 4,
    width: float = 1.3,
) -> Axes:
    """Plot lines over layers, with a legend above the axes.

    Args:
        figure: figure to draw on.
        layers: layer of each value of a line.
        lines: lines to plot; the last line is drawn on top.
        theme: colours of the figure.
        marker_size: size of the markers, in points.
        width: width of the lines, in points.
    """
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    for line in lines:
        values = [np.nan if value is None else value for value in line.values]
        axes.plot(
            layers, values, line.marker, ms=marker_size, ls=line.style, lw=width,
            color=line.colour, label=line.label,
        )  # fmt: skip
    axes.grid(axis="y", color=theme.faint, lw=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(axes)
    return axes


def add_legend(axes: Axes, reverse: bool = False) -> None:
    """Place a legend above the axes; it replaces an earlier legend."""
    handles, labels = axes.get_legend_handles_labels()
    if reverse:
        handles, labels = handles[::-1], labels[::-1]
    axes.legend(
        handles, labels, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1),
        borderaxespad=0.2, handletextpad=0.4, columnspacing=1.4,
    )  # fmt: skip


def mark_not_finite(axes: Axes, layers: Iterable[int], theme: Theme) -> None:
    """Mark layers without a finite value."""
    label = "nothing finite"
    for layer in sorted(layers):
        axes.axvspan(layer - 0.5, layer + 0.5, color=theme.faint, lw=0, label=label)
        label = "_"


def has_values(lines: Sequence[Line]) -> bool:
    """Return whether at least one value is neither missing nor zero.

    A logarithmic axis needs such a value. It cannot show zero, so points at zero are omitted.
    """
    return any(value for line in lines for value in line.values)


def make_logarithmic(axes: Axes) -> None:
    """Set a logarithmic scale on the value axis."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(NUMBERS)
