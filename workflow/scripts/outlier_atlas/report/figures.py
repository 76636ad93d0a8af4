"""Names and drawing of all figures of a run.

The criteria and measures declare the figures (`criteria/*/figures.py`). This module saves each
figure as SVG and PNG, light and dark. The files contain no date and no random ids, so equal tables
give equal bytes. The Snakefile imports this module for the names. Therefore numpy, pyarrow and
matplotlib are imported only in functions that draw.
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
"""Names of all kinds of figures."""


def names(sites: Sequence[str], detection: DetectionSettings | None = None) -> list[str]:
    """Return the file names of all figures of a run, without folder.

    Args:
        sites: the sites that the run measures.
        detection: the section `detection` of the configuration; by default its default values.
    """
    detection = detection or DetectionSettings()
    return _files((site, kind.name) for kind in FIGURES for site in kind.sites(sites, detection))


def all_names() -> list[str]:
    """Return the file names of the figures that any run can have, without folder."""
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
        folder: folder of the figures.
        tables_folder: folder of the run's tables.
    """
    for kind in FIGURES:
        for drawing in kind.drawings(tables_folder):
            for theme in THEMES:
                path = folder / f"{drawing.site}-{kind.name}{theme.suffix}"
                with _figure(path, theme, drawing.height, drawing.excluded) as figure:
                    drawing.draw(figure, theme)


@contextmanager
def _figure(path: Path, theme: Theme, height: float, excluded: str) -> Iterator[Figure]:
    """Yield an empty figure in the colours of a theme, and save it at the end of the block.

    Args:
        path: path of the files, without extension.
        theme: colours of the figure.
        height: height of the figure, in inches.
        excluded: sentence below the figure, or "".
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
            figure.set_layout_engine(
                "none"
            )  # keep the layout, so that both files have the same one
            write_whole(path.with_name(f"{path.name}.{ending}"), content.getvalue())
