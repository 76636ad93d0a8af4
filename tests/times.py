"""What differs between equal runs by nature: what jobs took, left out of comparisons."""

import re
from collections.abc import Iterable
from pathlib import Path

FOLDERS = {"measured"}
"""Folders of records of times."""

TABLE = "job_times"
"""Name of the table of times, which the report writes."""

OF_PAGE = re.compile(rb'<section id="jobs">.*?</section>', re.DOTALL)
"""The section of the page that shows times."""


def has_times(path: str | Path) -> bool:
    """Whether a file is a record or a table of times."""
    return bool(FOLDERS & set(Path(path).parts)) or Path(path).stem == TABLE


def without_times(page: bytes) -> bytes:
    """A page without its section of times."""
    return OF_PAGE.sub(b"", page)


def comparable(files: Iterable[str]) -> list[str]:
    """The files in a record of products whose checksums do not depend on times."""
    return sorted(f for f in files if not has_times(f) and Path(f).name != "report.html")
