"""Names and drawing of all figures of a run.

The criteria and measures describe the figures (`criteria/*/figures.py`). The page draws them itself
(`svg.py`). This module also saves each figure as SVG and PNG, light and dark, which a run does only
on demand. The files contain no date and no random ids, so equal tables give equal bytes. The
Snakefile imports this module for the names. Therefore numpy, pyarrow and matplotlib are imported
only in functions that draw.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from outlier_atlas.console import NOTICE
from outlier_atlas.criteria.figure import Drawing
from outlier_atlas.criteria.figures import FIGURES
from outlier_atlas.report.theme import THEMES
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.store.run_files import RunFiles

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


def drawings(tables_folder: Path) -> dict[str, Drawing]:
    """Return every figure of a run by its name, such as `attn_in-maxima`.

    Args:
        tables_folder: folder of the run's tables.
    """
    return {
        f"{drawing.site}-{kind.name}": drawing
        for kind in FIGURES
        for drawing in kind.drawings(tables_folder)
    }


def draw(folder: Path, tables_folder: Path) -> None:
    """Draw every figure of a run, light and dark, as SVG and PNG.

    Args:
        folder: folder of the figures.
        tables_folder: folder of the run's tables.
    """
    from outlier_atlas.report import static

    for name, drawing in drawings(tables_folder).items():
        for theme in THEMES:
            static.save(folder / f"{name}{theme.suffix}", drawing, theme)


def report_outdated(run: RunFiles) -> None:
    """Log a notice if the run has static figures that are older than its tables.

    An ordinary run does not draw them again. Times decide, as `snakemake figures` decides.
    """
    drawn, detected = (
        run.product_records / f"{rule}.json" for rule in ("draw_figures", "detect_outliers")
    )
    if drawn.exists() and detected.exists() and drawn.stat().st_mtime < detected.stat().st_mtime:
        logging.getLogger(__name__).log(
            NOTICE,
            "%s: drawn from earlier tables; `snakemake figures` draws them again",
            run.figures,
        )
