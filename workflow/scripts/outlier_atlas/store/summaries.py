"""Summaries in files: a safetensors file for the rows of each site and layer.

What lies there proves itself: its metadata holds the fingerprint of all that the numbers depend on,
and a checksum over them. So a summary counts if it can be read and its fingerprint is the current
one; no order of writing matters, and nothing has to be forced to the disk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from outlier_atlas.files import canonical, partial, unwritten
from outlier_atlas.store.commits import Commits, Rows
from outlier_atlas.store.fingerprints import Fingerprints
from outlier_atlas.store.layout import SUMMARY, Layout, Target

SUMMARIES = "summaries"
"""Folder of the summaries, seen from the run's folder."""

LENGTHS = "lengths"
"""(attribute, tile): how long its array is; `NUMBER` where it is none."""

NUMBER = -1

Kind = TypeVar("Kind")
"""A dataclass whose attributes are numbers and arrays of one axis."""


class DamagedSummaryError(ValueError):
    """A summary that cannot be read, or is not there."""


class LostSummaryError(ValueError):
    """The summary of a site that is not stored cannot be read.

    Attributes:
        target: of which site and layer.
        rows: of which rows.
    """

    def __init__(self, target: Target, rows: Rows, cause: Exception) -> None:
        where = f"{target.site}, layer {target.layer}, chunk {rows.chunk}"
        super().__init__(f"{where}: its summary is lost ({cause})")
        self.target = target
        self.rows = rows


def path_of(run: Path, target: Target, rows: Rows, measure: str = "") -> Path:
    """Where the summary of some rows of a site and layer lies.

    Args:
        measure: of which measure it is; empty for what all share.
    """
    # Where nothing is stored, what it was made as: what a commit stands for is not written over.
    name = target.array.removeprefix(SUMMARY)
    folder = run / SUMMARIES / f"{name}{measure}" / f"layer-{target.layer}"
    return folder / f"chunk-{rows.chunk}.{rows.start}-{rows.stop}.safetensors"


def write(path: Path, fingerprint: str, tiles: Sequence[Any]) -> str:
    """Write the summaries of tiles, of one kind; a reader sees the file before, or this one.

    Returns:
        Their checksum.

    Raises:
        OSError: the file cannot be written.
    """
    arrays = _joined(tiles)
    checksum = _checksum(arrays)
    # In one entry: safetensors writes several in an order that changes from process to process.
    proof = canonical({"fingerprint": fingerprint, "checksum": checksum})
    content = safetensors.numpy.save(arrays, {"summary": proof})
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial(path).write_bytes(content)
        partial(path).replace(path)
    except OSError as error:
        partial(path).unlink(missing_ok=True)
        raise unwritten(error, path, f"{len(content):,} bytes were to be written") from error
    return checksum


def read(
    path: Path, kind: type[Kind], fingerprint: str, committed: str | None = None
) -> list[Kind]:
    """The summaries of a file, tile by tile.

    Args:
        committed: the checksum that it was committed with; None where nothing is committed.

    Raises:
        DamagedSummaryError: it is not there, damaged, of another fingerprint, or another one than
            was committed.
    """
    arrays = _current(path, fingerprint, committed)
    try:
        return _split(kind, arrays)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedSummaryError(f"{path}: {error}") from error


def remove_superseded(run: Path, layout: Layout) -> None:
    """Remove what a layout does not need of sites that are not stored: those of a higher floor."""
    for folder in (run / SUMMARIES).glob("*@*/layer-*"):
        target = Target(f"{SUMMARY}{folder.parent.name}", int(folder.name.removeprefix("layer-")))
        if layout.superseded(target):
            shutil.rmtree(folder)
            with suppress(OSError):  # layers that are not measured now may be left in it
                folder.parent.rmdir()


def committed(
    run: Path,
    commits: Commits,
    fingerprints: Fingerprints,
    target: Target,
    chunk: int,
    kind: type[Kind],
) -> list[Kind]:
    """What extraction has left of a chunk of a site that is not stored, tile by tile.

    Raises:
        LostSummaryError: a summary is not there, or not the one that was committed.
    """
    found: list[Kind] = []
    # As they were written: by other sequence shards, perhaps, or of fewer sequences first.
    for kept, rows, checksum in commits.serving(target, chunk, fingerprints.of(chunk)):
        try:
            found += read(path_of(run, kept, rows), kind, fingerprints.summary(rows), checksum)
        except DamagedSummaryError as error:
            raise LostSummaryError(kept, rows, error) from error
    return found


def check(path: Path, fingerprint: str, committed: str) -> None:
    """Hold a file against the checksum that it was committed with.

    Raises:
        DamagedSummaryError: it is not there, damaged, of another fingerprint, or another one.
    """
    _current(path, fingerprint, committed)


def _current(path: Path, fingerprint: str, committed: str | None) -> dict[str, NDArray[Any]]:
    """The arrays of a file that agrees with its own checksum, a fingerprint, and its commit."""
    try:
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        arrays: dict[str, NDArray[Any]] = safetensors.numpy.load(content)
        metadata = json.loads(header["__metadata__"]["summary"])
        checksum = _checksum(arrays)
        whole = metadata["checksum"] == checksum
        current = metadata["fingerprint"] == fingerprint
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise DamagedSummaryError(f"{path}: {error}") from error
    if not whole:
        raise DamagedSummaryError(f"{path}: damaged")
    if not current:
        raise DamagedSummaryError(f"{path}: of another configuration")
    if committed not in (None, checksum):
        raise DamagedSummaryError(f"{path}: it is not the one that was committed")
    return arrays


def _joined(tiles: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """Of each attribute all tiles' values, one after the other, and the lengths of arrays."""
    arrays, lengths = {}, []
    for field in fields(tiles[0]):
        values = [np.asarray(getattr(tile, field.name)) for tile in tiles]
        lengths.append([len(value) if value.ndim else NUMBER for value in values])
        arrays[field.name] = np.concatenate(values) if values[0].ndim else np.stack(values)
    return {**arrays, LENGTHS: np.array(lengths)}


def _split(kind: type[Kind], arrays: Mapping[str, NDArray[Any]]) -> list[Kind]:
    columns: dict[str, Sequence[Any]] = {}
    for field, lengths in zip(fields(kind), arrays[LENGTHS], strict=True):  # type: ignore[arg-type]
        values = arrays[field.name]
        if lengths[0] == NUMBER:
            columns[field.name] = values.tolist()
        else:
            columns[field.name] = np.split(values, np.cumsum(lengths)[:-1])
    rows = zip(*columns.values(), strict=True)
    return [kind(**dict(zip(columns, row, strict=True))) for row in rows]


def _checksum(arrays: Mapping[str, NDArray[Any]]) -> str:
    checksum = 0
    for name in sorted(arrays):
        array = arrays[name]
        described = f"{name} {array.dtype.str} {array.shape}".encode()
        for part in (described, array.tobytes()):
            checksum = int(google_crc32c.extend(checksum, part))
    return f"{checksum:08x}"
