"""What was read of a dataset: files, rows, and what was left out and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_NAMES = 50
"""Files that a record names; of more it has the number."""


@dataclass
class DatasetRows:
    """How many rows of a file were read, and how many of them were empty."""

    read: int = 0
    empty: int = 0


@dataclass
class Reading:
    """What was read so far, file by file.

    Attributes:
        files: names of the dataset's files, in their order; no row is read of the later ones where
            the earlier ones have enough.
        skipped: files that are no part of the dataset, with the reason.
    """

    files: dict[str, DatasetRows] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def read(self) -> int:
        return sum(rows.read for rows in self.files.values())

    def record(self) -> dict[str, Any]:
        """The part of the tokens' record that says it, bounded."""
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
