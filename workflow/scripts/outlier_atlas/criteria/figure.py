"""The interface of a `figures.py`, which draws the figures of a criterion or measure.

The Snakefile needs the names of all figures. Therefore a `figures.py` imports numpy, pyarrow,
matplotlib, `report/lines.py` and `report/heatmaps.py` only in the functions that draw.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from outlier_atlas.settings.detection import DetectionSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from outlier_atlas.report.theme import Theme

LINE_HEIGHT = 4.0
"""Height of a line plot, in inches."""


def heatmap_height(layers: int) -> float:
    """Return the height of a heatmap with a row for each layer, in inches."""
    return min(8.0, 1.8 + 0.08 * layers)


@dataclass(frozen=True)
class Drawing:
    """A figure of one site that can be drawn in any theme.

    Attributes:
        site: the site that the figure shows.
        draw: a function that draws on an empty figure.
        height: height of the figure, in inches.
        excluded: sentence below the figure that names the excluded tokens; empty if none are.
    """

    site: str
    draw: Callable[[Figure, Theme], None]
    height: float = LINE_HEIGHT
    excluded: str = ""


class FigureKind(ABC):
    """A kind of figure, with one figure for each of its sites.

    The files of a figure are `<site>-<name>.svg` and `.png`, and the same with `-dark`. The caption
    for Snakemake's report is `workflow/report/<name>.rst`.

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
