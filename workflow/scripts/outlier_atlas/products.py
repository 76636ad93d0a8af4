"""Records of what rules have made: the checksum of each file, and of the record of the inputs.

Every rule leaves one (`manifests/outputs/<rule>.json` of a run, `resources/outputs/`). A job that
reads a file of another rule compares it with the checksum first, so that a damaged or edited file
is never used; `verify` compares all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from outlier_atlas.files import DamagedFileError, read_record, sha256, write_record

FOLDER = "outputs"
"""Folder of these records, in a run's `manifests` or in `resources`."""

FILES = "files"
MADE_FROM = "made_from"


def write(record: Path, files: Iterable[Path], made_from: str) -> None:
    """Record the checksums of files.

    Args:
        record: path of the record.
        files: the files that a rule has made.
        made_from: digest of the record of the rule's inputs (`inputs.digest`).

    Raises:
        OSError: a file cannot be read, or the record cannot be written.
    """
    # Relative to the record: a run's folder may be renamed or copied.
    sums = {os.path.relpath(file, record.parent): sha256(file) for file in files}
    write_record(record, {FILES: sums, MADE_FROM: made_from})


def made_from(record: Path) -> str | None:
    """Return the digest of the inputs that a rule last ran with; None if it is not known."""
    try:
        return str(read_record(record)[MADE_FROM])
    except (OSError, DamagedFileError, KeyError):
        return None


def missing(record: Path) -> list[Path]:
    """Return the files of a record that no longer exist; nothing for a damaged record."""
    try:
        return [path for path, _ in _listed(record) if not path.exists()]
    except (OSError, DamagedFileError, KeyError):
        return []


def check(records: Iterable[Path], files: Iterable[Path]) -> None:
    """Compare files with the records that list them; files that no record lists are ignored.

    Raises:
        DamagedFileError: a file, or a record, is not what was written.
    """
    listed = {path: digest for record in records for path, digest in _listed(record)}
    for file in files:
        digest = listed.get(Path(os.path.normpath(file)))
        if digest is not None:
            _compare(file, digest)


def damaged(record: Path) -> Iterator[DamagedFileError]:
    """Yield an error for each file of a record that is not what was written, or for the record.

    A missing file is not damaged: Snakemake notices it, and runs its rule.
    """
    try:
        listed = list(_listed(record))
    except DamagedFileError as damage:
        yield damage
        return
    for path, digest in listed:
        if path.exists():
            try:
                _compare(path, digest)
            except DamagedFileError as damage:
                yield damage


def _listed(record: Path) -> Iterator[tuple[Path, str]]:
    files = read_record(record)[FILES]
    yield from ((Path(os.path.normpath(record.parent / name)), files[name]) for name in files)


def _compare(path: Path, digest: str) -> None:
    if sha256(path) != digest:
        raise DamagedFileError(path, "it is not the file that was written")
