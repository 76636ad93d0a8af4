"""Files of summaries: a safetensors file for rows of each site and layer.

The metadata of a file contains the fingerprint of everything that the numbers depend on, a checksum
of the numbers, and a checksum of the metadata. Therefore a summary counts if it can be read and its
fingerprint is current. The order of writing does not matter, and no fsync is needed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from outlier_atlas.files import canonical, write_unsynced
from outlier_atlas.phases import LOAD, phase
from outlier_atlas.store.commits import Commits, Rows
from outlier_atlas.store.fingerprints import Fingerprints
from outlier_atlas.store.layout import SUMMARY, Layout, Target
from outlier_atlas.store.run_files import RunFiles

LENGTHS = "lengths"
"""Name of the array of lengths, (attribute, tile); `NUMBER` stands for a number."""

NUMBER = -1

DESCRIBED = {"fingerprint", "checksum", "attributes"}
"""Keys of a file's description."""

PROOF = "proof"
"""Key in a file's description of the checksum of its other entries."""

OF_FLOOR = re.compile(r"\w+@\d[\de.+-]*\.\d+")
"""Folder name for summaries of a site that is not stored: site, floor and version."""

PLACE = re.compile(r"chunk-(\d+)\.(\d+)-(\d+)\.safetensors")
"""File name: chunk, first token, and the token after the last."""

Arrays = dict[str, NDArray[Any]]
Attributes = dict[str, str]
"""Name of the array that contains each attribute of a summary, by attribute."""

Kind = TypeVar("Kind")
"""A dataclass of numbers and one-dimensional arrays."""


class DamagedSummaryError(ValueError):
    """A summary is missing or damaged."""


class LostSummaryError(ValueError):
    """A summary of a site that is not stored is missing or damaged.

    Attributes:
        target: the site and layer.
        rows: the rows.
    """

    def __init__(self, target: Target, rows: Rows, cause: Exception) -> None:
        where = f"{target.site}, layer {target.layer}, chunk {rows.chunk}"
        super().__init__(f"{where}: its summary is lost ({cause})")
        self.target = target
        self.rows = rows


def path_of(run: RunFiles, target: Target, rows: Rows, measure: str = "") -> Path:
    """Return the file of a summary.

    Args:
        run: the files of the run.
        target: the site and layer.
        rows: the rows.
        measure: the measure of the summary; empty for the summary that all measures share.
    """
    # Without stored values the name has the floor, so committed summaries are not overwritten.
    name = target.array.removeprefix(SUMMARY)
    folder = run.summaries / f"{name}{measure}" / f"layer-{target.layer}"
    return folder / f"chunk-{rows.chunk}.{rows.start}-{rows.stop}.safetensors"


def write(path: Path, fingerprint: str, tiles: Sequence[Any]) -> str:
    """Write the summaries of tiles of one kind; a reader sees the old or the new file.

    Returns:
        The checksum of the summaries.

    Raises:
        OSError: the file cannot be written.
    """
    arrays, attributes = _joined(tiles)
    checksum = _checksum(arrays, attributes)
    # One entry, because safetensors writes several in an order that differs between processes.
    described = {"fingerprint": fingerprint, "checksum": checksum, "attributes": attributes}
    entry = canonical(described | {PROOF: _proof(described)})
    content = safetensors.numpy.save(arrays, {"summary": entry})
    write_unsynced(path, [content], path.parent)
    return checksum


@phase(LOAD)
def read(
    path: Path, kind: type[Kind], fingerprint: str, committed: str | None = None
) -> list[Kind]:
    """Return the summaries of a file, tile by tile.

    Args:
        path: the file.
        kind: class of the summaries.
        fingerprint: fingerprint that the file must have.
        committed: checksum that the file must have; None if no commit names the file.

    Raises:
        DamagedSummaryError: the file is missing, damaged, of another fingerprint, or differs from
            its commit.
    """
    arrays, attributes = _current(path, fingerprint, committed)
    try:
        return _split(kind, arrays, attributes)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedSummaryError(f"{path}: {error}") from error


def files(run: RunFiles) -> Iterator[tuple[Path, Target, Rows]]:
    """Yield the files of all summaries in a run's folder, each with its target and its rows.

    Detection writes the summaries of stored sites. The targets of other sites are summaries.
    """
    for path in sorted(run.summaries.glob("*/layer-*/chunk-*.safetensors")):
        target, place = _target(path.parent), PLACE.fullmatch(path.name)
        if target and place:
            yield path, target, Rows(*map(int, place.groups()))


def _target(folder: Path) -> Target | None:
    """Return the target of the summaries in a folder; None for another folder."""
    name, layer = folder.parent.name, folder.name.removeprefix("layer-")
    if not layer.isdecimal():
        return None
    if "@" not in name:
        return Target(name, int(layer))
    return Target(f"{SUMMARY}{name}", int(layer)) if OF_FLOOR.fullmatch(name) else None


def check_itself(path: Path) -> None:
    """Compare a file with its own checksums, regardless of its fingerprint.

    Raises:
        DamagedSummaryError: a checksum does not agree.
    """
    _whole(path)


def remove_superseded(run: RunFiles, layout: Layout) -> None:
    """Remove summaries that a layout does not need, such as summaries with a higher floor."""
    for folder in run.summaries.glob("*@*/layer-*"):
        target = _target(folder)
        if target and layout.superseded(target):
            shutil.rmtree(folder)
            with suppress(OSError):  # layers that are no longer measured may be left in it
                folder.parent.rmdir()


def committed(
    run: RunFiles,
    commits: Commits,
    fingerprints: Fingerprints,
    target: Target,
    chunk: int,
    kind: type[Kind],
) -> list[Kind]:
    """Return the summaries of a chunk that extraction has written, tile by tile.

    Args:
        run: the files of the run.
        commits: the commits that count.
        fingerprints: the fingerprints of the chunks.
        target: target of a site that is not stored.
        chunk: index of the chunk.
        kind: class of the summaries.

    Raises:
        LostSummaryError: a summary is missing, or differs from its commit.
    """
    summaries: list[Kind] = []
    # Several files may cover the chunk: of other sequence shards, or of earlier, shorter runs.
    for kept, rows, checksum in commits.serving(target, chunk, fingerprints.of(chunk)):
        try:
            summaries += read(path_of(run, kept, rows), kind, fingerprints.summary(rows), checksum)
        except DamagedSummaryError as error:
            raise LostSummaryError(kept, rows, error) from error
    return summaries


def check(path: Path, fingerprint: str, committed: str) -> None:
    """Compare a file with the checksum in its commit.

    Raises:
        DamagedSummaryError: the file is missing, damaged, of another fingerprint, or differs from
            its commit.
    """
    _current(path, fingerprint, committed)


def _current(path: Path, fingerprint: str, committed: str | None) -> tuple[Arrays, Attributes]:
    """Read a file, and compare it with its checksums, a fingerprint and its commit."""
    arrays, described = _whole(path)
    if described["fingerprint"] != fingerprint:
        raise DamagedSummaryError(f"{path}: of another configuration")
    if committed not in (None, described["checksum"]):
        raise DamagedSummaryError(f"{path}: it is not the one that was committed")
    return arrays, described["attributes"]


def _whole(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read a file, compare it with its checksums, and return arrays and description."""
    try:
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        arrays: Arrays = safetensors.numpy.load(content)
        described: dict[str, Any] = json.loads(header["__metadata__"]["summary"])
        proof = described.pop(PROOF, None)  # older files have none
        whole = described["checksum"] == _checksum(arrays, described["attributes"])
        whole &= described.keys() == DESCRIBED and proof in (None, _proof(described))
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise DamagedSummaryError(f"{path}: {error}") from error
    if not whole:
        raise DamagedSummaryError(f"{path}: damaged")
    return arrays, described


def _joined(tiles: Sequence[Any]) -> tuple[Arrays, Attributes]:
    """Join the attributes of tiles into one array for each dtype, and an array of lengths.

    Parts are ordered by attribute, then by tile. Few long arrays are faster, because an array in a
    file takes as much time as thousands of numbers.
    """
    parts: dict[str, list[NDArray[Any]]] = defaultdict(list)
    attributes, lengths = {}, []
    for field in fields(tiles[0]):
        values = [np.asarray(getattr(tile, field.name)) for tile in tiles]
        dtype = attributes[field.name] = values[0].dtype.str
        assert all(value.dtype.str == dtype for value in values), field.name
        parts[dtype] += [value.ravel() for value in values]
        lengths.append([len(value) if value.ndim else NUMBER for value in values])
    arrays: Arrays = {dtype: np.concatenate(values) for dtype, values in parts.items()}
    return {**arrays, LENGTHS: np.array(lengths)}, attributes


def _split(kind: type[Kind], arrays: Arrays, attributes: Attributes) -> list[Kind]:
    used = dict.fromkeys(arrays, 0)
    tiles: list[dict[str, Any]] = [{} for _ in arrays[LENGTHS].T]
    for field, lengths in zip(fields(kind), arrays[LENGTHS].tolist(), strict=True):  # type: ignore[arg-type]
        dtype = attributes[field.name]
        for tile, length in zip(tiles, lengths, strict=True):
            start = used[dtype]
            used[dtype] = start + (1 if length == NUMBER else length)
            values = arrays[dtype][start : used[dtype]]
            tile[field.name] = values[0].item() if length == NUMBER else values
    return [kind(**tile) for tile in tiles]


def _proof(described: Mapping[str, Any]) -> str:
    return f"{google_crc32c.value(canonical(described).encode()):08x}"


def _checksum(arrays: Arrays, attributes: Attributes) -> str:
    checksum = int(google_crc32c.value(canonical(attributes).encode()))
    for name in sorted(arrays):
        array = arrays[name]
        described = f"{name} {array.dtype.str} {array.shape}".encode()
        for part in (described, array.tobytes()):
            checksum = int(google_crc32c.extend(checksum, part))
    return f"{checksum:08x}"
