"""Counts of the files and rows that were read from a dataset, and of those that were skipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_NAMES = 50
"""Maximum number of files that a record names; it also counts all of them."""


@dataclass
class DatasetRows:
    """The number of rows of a file that were read, and of the empty ones among them."""

    read: int = 0
    empty: int = 0


@dataclass
class Reading:
    """The rows that were read so far, file by file.

    Attributes:
        files: the dataset's files by name, in order; later files have no rows if the earlier ones
            have enough.
        skipped: files that do not belong to the dataset, with the reason.
    """

    files: dict[str, DatasetRows] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def read(self) -> int:
        return sum(rows.read for rows in self.files.values())

    def record(self) -> dict[str, Any]:
        """Return the entries of the tokens' record, of bounded size."""
        opened = {name: rows for name, rows in self.files.items() if rows.read}
        shown = list(opened.items())[:MOST_NAMES]
        return {
            "files": [{"name": n, "rows": r.read, "empty_rows": r.empty} for n, r in shown],
            "files_read": len(opened),
            "files_not_needed": len(self.files) - len(opened),
            "rows": self.read,
            "empty_rows": sum(rows.empty for rows in self.files.values()),
            "skipped": dict(list(self.skipped.items())[:MOST_NAMES]),
            "files_skipped": len(self.skipped),
        }
