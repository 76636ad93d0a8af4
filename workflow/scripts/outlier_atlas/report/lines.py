"""Figures of lines over layers."""

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
"""Format of a logarithmic axis: 1,000,000 and 0.01, without exponents."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Line:
    """Values over layers; None where a layer has no value."""

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
    """Plot lines over layers, with a legend above.

    Args:
        layers: one for each value of a line.
        lines: the last is drawn above the others.
        marker_size, width: of markers and lines, in points.
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
    """Put a legend above the axes, in place of an earlier one."""
    handles, labels = axes.get_legend_handles_labels()
    if reverse:
        handles, labels = handles[::-1], labels[::-1]
    axes.legend(
        handles, labels, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1),
        borderaxespad=0.2, handletextpad=0.4, columnspacing=1.4,
    )  # fmt: skip


def mark_not_finite(axes: Axes, layers: Iterable[int], theme: Theme) -> None:
    """Mark the layers in which no value is finite."""
    label = "nothing finite"
    for layer in sorted(layers):
        axes.axvspan(layer - 0.5, layer + 0.5, color=theme.faint, lw=0, label=label)
        label = "_"


def has_values(lines: Sequence[Line]) -> bool:
    """Whether a value is neither missing nor zero, as a logarithmic axis needs it.

    A logarithmic axis has no zero: such a point is left out, and the table has it.
    """
    return any(value for line in lines for value in line.values)


def make_logarithmic(axes: Axes) -> None:
    """Make the axis of values logarithmic."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(NUMBERS)
