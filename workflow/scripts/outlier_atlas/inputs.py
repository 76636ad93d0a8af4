"""What a rule is made from, in addition to files of other rules: a record that is its input.

Snakemake remembers settings in `.snakemake`, which may have been deleted, or be that of another
checkout, and it knows a user's files by their times alone. So settings, code and the contents of a
user's files are in a small record for each rule, `manifests/inputs/<rule>.json` of a run or
`resources/inputs/`, and the record is an input of the rule: it is newer than what the rule has made
exactly if that was made from something else. Only the process that makes a run writes it, before
the jobs are planned. A dry run compares in memory, and takes a temporary file in place of each
record that it would write.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from outlier_atlas import products
from outlier_atlas.files import (
    DamagedFileError,
    canonical,
    fingerprint,
    read_record,
    write_record,
)

FOLDER = "inputs"
"""Folder of these records, next to that of `products`."""

CHANGE = "change"
"""Key of a random number, in a record that replaces another. Snakemake compares checksums where a
file is newer: after a setting was changed and changed back, a record with the old bytes would be
taken for the one that it remembers, whatever was made meanwhile."""

LONG_AGO = 1
"""Seconds since 1970: the time of a record that what was made agrees with."""


Content = Callable[[], Mapping[str, Any]]


class Purpose(Enum):
    """What the process is for that reads the Snakefile."""

    MAKE = "run jobs"
    LOOK = "show what there is to do, and write nothing"
    JOB = "run one job, whose records are there"


class Inputs:
    """The records of a process.

    Args:
        purpose: of the process.
        say: is told what is out of date and why, a rule a line.
    """

    def __init__(self, purpose: Purpose, say: Callable[[str], object]) -> None:
        self.purpose = purpose
        self._say = say
        self._temporary: Path | None = None

    def record(self, path: Path, content: Content, with_products: bool = True) -> str:
        """The record of a rule's inputs: the file that the rule takes as its input.

        Args:
            path: of the record; that of the rule's products has the same name.
            content: gives what the record shall hold, `CHANGE` apart.
            with_products: whether the rule leaves a record of its products, which says what they
                were made from. Without one the record alone is compared.
        """
        if self.purpose is Purpose.JOB:
            return str(path)
        there, made = _read(path), _products(path) if with_products else None
        if there is None and made is None and self.purpose is Purpose.LOOK:
            # Nothing was made yet, and a user's files need not be read to say so.
            return str(self._instead(path, {}))
        wanted = _normal(content())
        same = there is not None and _without_change(there) == wanted
        if not with_products:
            return str(path if same else self._written(path, there, wanted, stale=True))
        gone = products.missing(made) if made is not None else []
        stale = made is None or bool(gone) or products.made_from(made) != digest(wanted)
        if same and made is not None and _is_newer(path, made) == stale:
            return str(path)
        if gone:
            self._say(f"{path.stem} runs again: {gone[0]} is missing")
        return str(self._written(path, there, wanted, stale))

    def is_current(self, path: Path, content: Content, outputs: Iterable[Path]) -> bool:
        """Whether all that a rule makes is there, made from what it would be made from now."""
        there, made = _read(path), _products(path)
        if there is None or made is None or not all(output.exists() for output in outputs):
            return False
        wanted = _normal(content())
        same = _without_change(there) == wanted and products.made_from(made) == digest(wanted)
        return same and not _is_newer(path, made)

    def _written(
        self, path: Path, there: Mapping[str, Any] | None, wanted: dict[str, Any], stale: bool
    ) -> Path:
        """The record, written: newer than what was made if that is stale, and older if not."""
        if stale and there is not None:
            self._tell(path, there, wanted)
            wanted = wanted | {CHANGE: secrets.token_hex(8)}
        if self.purpose is Purpose.MAKE:
            write_record(path, wanted)
        else:
            path = self._instead(path, wanted)
        if not stale:
            os.utime(path, (LONG_AGO, LONG_AGO))
        return path

    def _instead(self, path: Path, content: Mapping[str, Any]) -> Path:
        if self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="outlier-atlas-"))
            atexit.register(shutil.rmtree, self._temporary, ignore_errors=True)
        instead = self._temporary / path.relative_to(path.anchor)
        write_record(instead, content)
        return instead

    def _tell(self, path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        changes = list(_changes(before, now))
        if changes:
            more = f", and {len(changes) - 3} more" if len(changes) > 3 else ""
            self._say(f"{path.stem} is out of date: {'; '.join(changes[:3])}{more}")


def digest(record: Mapping[str, Any]) -> str:
    """Thirty-two hexadecimal digits that stand for a record, its `CHANGE` left out."""
    return fingerprint(_without_change(record))[:32]


def digest_of(path: Path) -> str:
    """The same of a record's file.

    Raises:
        DamagedFileError: it is not what was written.
    """
    return digest(read_record(path))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_record(path)
    except (OSError, DamagedFileError):
        return None


def _without_change(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != CHANGE}


def _normal(content: Mapping[str, Any]) -> dict[str, Any]:
    """As a record gives it back: lists for tuples, strings for keys."""
    normal: dict[str, Any] = json.loads(canonical(content))
    return normal


def _products(path: Path) -> Path | None:
    """The record of what a rule has made, by that of its inputs; None where there is none."""
    record = path.parents[1] / products.FOLDER / path.name
    return record if record.exists() else None


def _is_newer(path: Path, made: Path) -> bool:
    return path.stat().st_mtime > made.stat().st_mtime


def _changes(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """What differs between two records, a key at a time, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted((before.keys() | now.keys()) - {CHANGE}):
            path = f"{key}.{name}" if key else name
            yield from _changes(before.get(name), now.get(name), path)
    elif before != now and key == "code":
        yield "its code has changed"
    elif before != now and key.startswith("files."):
        yield f"{key.removeprefix('files.')} has changed"
    elif before != now:
        name = key.removeprefix("settings.").removeprefix("configuration.")
        yield f"{name} was {_short(before)} and is {_short(now)}"


def _short(value: Any) -> str:
    said = json.dumps(value)
    return said if len(said) <= 60 else f"{said[:57]}..."
