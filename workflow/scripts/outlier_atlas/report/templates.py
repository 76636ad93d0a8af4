"""Templates and style sheet of the page.

The Snakefile imports this module, so it imports no large packages.
"""

from __future__ import annotations

from pathlib import Path

from outlier_atlas import criteria

REPORT = Path(__file__).parent
CRITERIA = Path(criteria.__file__).parent
"""Folder of the criteria, which contains the templates of their sections."""
TEMPLATES = (
    REPORT / "template.html.j2",
    REPORT / "comparison.html.j2",
    REPORT / "job_times.html.j2",
    REPORT / "style.css",
    *sorted(CRITERIA.glob("*.html.j2")),
    *sorted(CRITERIA.glob("*/*.html.j2")),
)
"""Templates and style sheet. A change reruns `render_report`, like a change to a module."""
