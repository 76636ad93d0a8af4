"""The interface of a `figures.py`, which describes the figures of a criterion or measure.

A figure is a description, either `Lines` or `Heatmap`. `report/svg.py` draws it for the page, and
`report/static.py` as files. The Snakefile needs the names of all figures. Therefore this module
and every `figures.py` import numpy and pyarrow only in functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, ClassVar

from outlier_atlas.settings.detection import DetectionSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Shapes of markers, by the names of matplotlib."""


@dataclass(frozen=True)
class Line:
    """A line of values over layers.

    Attributes:
        label: label in the legend; empty if the legend omits the line.
        values: value of each layer; None for a layer without a value.
        colour: role of its colour: `first`, `second`, `third`, `contrast` or one of `theme.LINES`.
        marker: one of `MARKERS`.
        dashed: whether the line is dashed.
    """

    label: str
    values: Sequence[float | None]
    colour: str
    marker: str
    dashed: bool = False


@dataclass(frozen=True)
class Lines:
    """Lines over layers, with a legend above the axes.

    Attributes:
        layers: layer of each value of a line.
        lines: the lines, in the order of the legend; the first line is drawn on top.
        value: label of the value axis.
        logarithmic: whether the value axis is logarithmic, which omits values that are not
            positive. Without a positive value the axis is linear.
        not_finite: layers that are marked because they have no finite value.
        title: text above the axes, on the right.
        notes: layer, value and text of labels at points.
    """

    layers: Sequence[int]
    lines: Sequence[Line]
    value: str
    logarithmic: bool = True
    not_finite: Collection[int] = ()
    title: str = ""
    notes: Sequence[tuple[int, float, str]] = ()

    @property
    def is_logarithmic(self) -> bool:
        """Whether the value axis is logarithmic and there is a positive value."""
        positive = any(value and value > 0 for line in self.lines for value in line.values)
        return self.logarithmic and positive


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Values by layer and column.

    Attributes:
        values: values, not negative, (layer, column); NaN without a value.
        layers: layer of each row.
        column: label of the column axis.
        value: label of the colour bar.
        logarithmic: whether the colour scale is logarithmic; otherwise it is linear, from 0 to 1.
    """

    values: NDArray[np.float64]
    layers: Sequence[int]
    column: str
    value: str
    logarithmic: bool = True

    @classmethod
    def of(
        cls, table: Any, name: str, column: str, value: str, logarithmic: bool = True
    ) -> Heatmap:
        """Return a heatmap of |x| of a table's column; null becomes NaN.

        Args:
            table: an Arrow table, ordered by layer, with the same number of rows for each layer.
            name: name of the column.
            column: label of the column axis.
            value: label of the colour bar.
            logarithmic: whether the colour scale is logarithmic.
        """
        import numpy as np

        layers = np.unique(table["layer"].to_numpy())
        values = np.abs(table[name].to_numpy(zero_copy_only=False).astype(np.float64))
        return cls(values.reshape(len(layers), -1), layers.tolist(), column, value, logarithmic)


@dataclass(frozen=True)
class Drawing:
    """A figure of one site.

    Attributes:
        site: the site that the figure shows.
        plot: the description of the figure.
        excluded: sentence below the figure that names the excluded tokens; empty if none are.
    """

    site: str
    plot: Lines | Heatmap
    excluded: str = ""

    @property
    def footnote(self) -> str:
        """The sentence on excluded tokens, as far as it fits below the figure."""
        return shorten(self.excluded, 140, placeholder=" …")

    @property
    def height(self) -> float:
        """Height of the figure, if its width is 9.6."""
        if isinstance(self.plot, Lines):
            return 4.0
        return min(8.0, 1.8 + 0.08 * len(self.plot.layers))


class FigureKind(ABC):
    """A kind of figure, with one figure for each of its sites.

    The static files of a figure are `<site>-<name>.svg` and `.png`, and the same with `-dark`. The
    caption for Snakemake's report is `workflow/report/<name>.rst`.

    Attributes:
        name: unique name of the kind.
        declared: sites that can have a figure of this kind, in the order of a block.
    """

    name: ClassVar[str]
    declared: ClassVar[tuple[str, ...]]

    def sites(self, measured: Collection[str], detection: DetectionSettings) -> list[str]:
        """Return the declared sites with a figure in this run; by default those that are measured.

        Args:
            measured: the sites that the run measures.
            detection: the section `detection` of the configuration.
        """
        return [site for site in self.declared if site in measured]

    @abstractmethod
    def drawings(self, tables_folder: Path) -> Iterator[Drawing]:
        """Yield the figures of a run.

        Args:
            tables_folder: folder of the run's tables.
        """
