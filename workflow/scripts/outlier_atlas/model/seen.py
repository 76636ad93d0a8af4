"""Sizes and times that the files of a model had when they were last read, beside its record."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from outlier_atlas.files import DamagedFileError, read_record, write_record

Seen = dict[str, list[int]]


def stamps(folder: Path, names: Iterable[str]) -> Seen:
    """Size and time of files; nothing of one that is not there."""
    paths = {name: folder / name for name in names}
    return {
        name: [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []
        for name, path in paths.items()
    }


def remember(record: Path, seen: Seen) -> None:
    """Keep the sizes and times that files had before they were read."""
    write_record(_beside(record), seen)


def recall(record: Path) -> Seen:
    """What was kept; nothing where there is none."""
    try:
        return read_record(_beside(record))
    except (OSError, DamagedFileError):
        return {}


def _beside(record: Path) -> Path:
    return record.with_suffix(".seen")
