"""The files that the page is made of, code apart; imports nothing heavy, for the Snakefile."""

from __future__ import annotations

from pathlib import Path

from outlier_atlas import criteria

REPORT = Path(__file__).parent
CRITERIA = Path(criteria.__file__).parent
"""The folder of the criteria, with the templates of their sections."""
TEMPLATES = (
    REPORT / "template.html.j2",
    REPORT / "comparison.html.j2",
    REPORT / "style.css",
    *sorted(CRITERIA.glob("*.html.j2")),
    *sorted(CRITERIA.glob("*/*.html.j2")),
)
"""Templates and style sheet; a change reruns `render_report`, as a change to a module does."""
