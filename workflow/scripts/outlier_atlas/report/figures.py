"""The figures of a run: their names, and drawing them all.

The criteria and measures declare the figures (`criteria/*/figures.py`); this module saves each of
them as SVG and PNG, light and dark. Equal tables give equal bytes: no date, no random ids. The
Snakefile imports this module for the names, so numpy, pyarrow and matplotlib are imported where a
figure is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from outlier_atlas.criteria.figures import FIGURES
from outlier_atlas.files import write_whole
from outlier_atlas.report.theme import THEMES, Theme
from outlier_atlas.settings.detection import DetectionSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = tuple(kind.name for kind in FIGURES)
"""The names of all kinds of figures."""


def names(sites: Sequence[str], detection: DetectionSettings | None = None) -> list[str]:
    """Return the file names of all figures of a run, without folder.

    Args:
        sites: the sites that the run measures.
        detection: the section `detection` of the configuration; the defaults without it.
    """
    detection = detection or DetectionSettings()
    return _files((site, kind.name) for kind in FIGURES for site in kind.sites(sites, detection))


def all_names() -> list[str]:
    """Return the file names of the figures of every possible run, without folder."""
    return _files((site, kind.name) for kind in FIGURES for site in kind.declared)


def _files(figures: Iterable[tuple[str, str]]) -> list[str]:
    return [
        f"{site}-{kind}{theme.suffix}.{ending}"
        for site, kind in figures
        for theme in THEMES
        for ending in ("svg", "png")
    ]


def draw(folder: Path, tables_folder: Path) -> None:
    """Draw every figure of a run, light and dark, as SVG and PNG.

    Args:
        folder: for the figures.
        tables_folder: of the run.
    """
    for kind in FIGURES:
        for drawing in kind.drawings(tables_folder):
            for theme in THEMES:
                path = folder / f"{drawing.site}-{kind.name}{theme.suffix}"
                with _figure(path, theme, drawing.height, drawing.excluded) as figure:
                    drawing.draw(figure, theme)


@contextmanager
def _figure(path: Path, theme: Theme, height: float, excluded: str) -> Iterator[Figure]:
    """Give an empty figure in a theme's colours, and save it when the block ends.

    Args:
        path: of its files, without ending.
        excluded: the sentence under the figure; none if it is empty.
    """
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
        if excluded:
            figure.supxlabel(shorten(excluded, 140, placeholder=" …"), fontsize=8)
        yield figure
        for ending, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            content = io.BytesIO()
            figure.savefig(content, format=ending, dpi=144, metadata=metadata)
            figure.set_layout_engine("none")  # laid out once, and the same in both files
            write_whole(path.with_name(f"{path.name}.{ending}"), content.getvalue())
