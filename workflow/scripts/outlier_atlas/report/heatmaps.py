"""Heatmaps of numbers by layer and column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.report.lines import NUMBERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from outlier_atlas.report.theme import Theme

COLUMNS = 1152
"""Maximum number of columns; with more channels, a column shows the maximum of several."""


def by_layer(table: Any, name: str) -> tuple[NDArray[np.float64], list[int]]:
    """Return |x| of a table's column as (layer, column of the heatmap), and the layers.

    Null becomes NaN.

    Args:
        table: an Arrow table, ordered by layer, with the same number of rows for each layer.
        name: name of the column.
    """
    layers = np.unique(table["layer"].to_numpy())
    values = np.abs(table[name].to_numpy(zero_copy_only=False).astype(np.float64))
    return values.reshape(len(layers), -1), layers.tolist()


def logarithmic(
    largest: NDArray[np.float64],
    layers: list[int],
    figure: Figure,
    theme: Theme,
    *,
    column: str,
    value: str,
) -> None:
    """Draw the largest values by layer and column on a logarithmic colour scale.

    Args:
        largest: largest values, not negative, (layer, column); NaN without a value.
        layers: layer of each row.
        figure: figure to draw on.
        theme: colours of the figure.
        column: label of the column axis.
        value: label of the colour bar.
    """
    from matplotlib.colors import LogNorm

    axes = figure.add_subplot()
    shown, width = _pooled(largest)
    positive = shown[shown > 0]
    if not len(positive):
        axes.text(0.5, 0.5, "no finite value above zero", ha="center", transform=axes.transAxes)
        return
    # The lowest percent of the values would use up the colour range.
    low, high = float(np.percentile(positive, 1)), float(positive.max())
    norm = LogNorm(low, high if high > low else low * 10, clip=True)
    image = axes.imshow(
        np.where(shown > 0, shown, np.nan), aspect="auto", origin="lower", interpolation="nearest",
        cmap=theme.colormap, norm=norm,
        extent=(-0.5, largest.shape[1] - 0.5, -0.5, len(layers) - 0.5),
    )  # fmt: skip
    _finish_heatmap(figure, axes, image, layers, value, NUMBERS)
    each = "" if width == 1 else f" (a column: the largest of {width})"
    empty = np.flatnonzero(np.isnan(largest).all(axis=1))
    for row in empty:
        axes.axhspan(row - 0.5, row + 0.5, facecolor="none", edgecolor=theme.faint, hatch="///")
    axes.set_xlabel(f"{column}{each}{'; hatched: nothing finite' if len(empty) else ''}")
    _label_columns(axes, largest, theme)


def from_0_to_1(
    values: NDArray[np.float64],
    layers: list[int],
    figure: Figure,
    theme: Theme,
    *,
    column: str,
    value: str,
) -> None:
    """Draw values between 0 and 1 by layer and column on a linear colour scale.

    Args:
        values: values, (layer, column).
        layers: layer of each row.
        figure: figure to draw on.
        theme: colours of the figure.
        column: label of the column axis.
        value: label of the colour bar.
    """
    axes = figure.add_subplot()
    image = axes.imshow(
        values, aspect="auto", origin="lower", interpolation="nearest",
        cmap=theme.colormap, vmin=0, vmax=1,
    )  # fmt: skip
    _finish_heatmap(figure, axes, image, layers, value, "{x:g}")
    axes.set_xlabel(column)


def _finish_heatmap(
    figure: Figure, axes: Axes, image: Any, layers: list[int], value: str, numbers: str
) -> None:
    """Add the colour bar and the layer axis."""
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.04, format=numbers)
    bar.set_label(value)
    bar.outline.set_visible(False)
    ticks = range(0, len(layers), -(-len(layers) // 12))
    axes.set_yticks(ticks, [str(layers[tick]) for tick in ticks])
    axes.set_ylabel("layer")


def _label_columns(axes: Axes, largest: NDArray[np.float64], theme: Theme) -> None:
    """Label up to six columns with the largest maxima, at a minimum distance."""
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


def _pooled(largest: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Pool neighbouring channels by their maximum into at most `COLUMNS` columns.

    matplotlib would otherwise skip most channels of a wide model, including outliers.

    Returns:
        The pooled values, and the number of channels in a column.
    """
    width = -(-largest.shape[1] // COLUMNS)
    padding = -largest.shape[1] % width
    padded = np.pad(np.nan_to_num(largest), ((0, 0), (0, padding)))
    return padded.reshape(len(largest), -1, width).max(axis=2), width
