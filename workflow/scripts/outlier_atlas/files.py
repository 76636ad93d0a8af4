"""Files that are there whole or not at all, and small records in canonical JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends without an error.

    A reader sees the old file or the new one; after a failure the temporary file is gone. What a
    killed process has left of it, the next one overwrites: a file has one writer at a time.

    Raises:
        OSError: it cannot be written; with the path, and the bytes that came to be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial(path)
    try:
        yield temporary
        _to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        size = temporary.stat().st_size if temporary.exists() else 0
        raise unwritten(error, path, f"more than {size:,} bytes are needed") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """The same for a folder: the block makes the one that it is given.

    Between the old folder and the new one there is none, for a moment.
    """
    with scratch(folder) as temporary:
        yield temporary / folder.name
        for file in (temporary / folder.name).iterdir():
            if not file.is_symlink():
                _to_disk(file)
        shutil.rmtree(folder, ignore_errors=True)
        (temporary / folder.name).rename(folder)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` that is gone after the block; a killed process leaves it to the
    next one, which empties it."""
    folder = partial(path)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all.

    Raises:
        OSError: it cannot be written; with the path, and the bytes that were to be written.
    """
    temporary = partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb", buffering=0) as file:
            write_all(file, content)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritten(error, path, f"{len(content):,} bytes were to be written") from error


def append(path: Path, content: bytes) -> None:
    """Append to a file, all or nothing.

    Raises:
        OSError: it cannot be written; with the path, and the bytes that were to be written.
    """
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            write_all(file, content)
        except OSError as error:
            file.truncate(end)
            raise unwritten(error, path, f"{len(content):,} bytes were to be written") from error


def write_all(file: FileIO, content: bytes) -> None:
    """Write to an unbuffered file until all is written: a full disk takes a part, then none."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def write_parts(path: Path, *parts: bytes) -> None:
    """Write a file, as it comes; its folder is made where it is missing."""
    try:
        file = path.open("wb", buffering=0)
    except FileNotFoundError:  # most often it is there, and to look for it takes longer
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb", buffering=0)
    with file:
        for part in parts:
            write_all(file, part)


def _to_disk(path: Path) -> None:
    """From here on the file's content outlives a loss of power."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def partial(path: Path) -> Path:
    """Where a file lies until it is whole."""
    return path.with_name(f".{path.name}.partial")


def unwritten(error: OSError, path: Path, size: str) -> OSError:
    """An error of writing that says which file it was, how much it takes, and what to do."""
    said = f"{error.strerror or error}; {size}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        said += "; make room for it and run again: what is finished or committed counts"
    return OSError(error.errno, said, str(path))


def readable(path: Path) -> str:
    """A path as Snakemake shows it: relative to the working directory where it lies in there."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def canonical(value: Any) -> str:
    """JSON with sorted keys and nothing left to taste, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def fingerprint(value: Any) -> str:
    """sha256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class DamagedFileError(ValueError):
    """A file of ours that is not what was written.

    Attributes:
        path: the file; once it is gone, the rule that makes it makes it anew.
        cause: in words.
    """

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"{path}: damaged ({cause}); run again: it is made anew")
        self.path = path
        self.cause = cause


CHECKSUM = "checksum"
"""Key of a record under which it has the checksum of everything else in it."""


def checksum(entry: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that stand for what a record holds, its checksum left out."""
    return fingerprint({key: value for key, value in entry.items() if key != CHECKSUM})[:16]


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as readable JSON with sorted keys; equal records give equal bytes."""
    whole = {**record, CHECKSUM: checksum(record)}
    text = json.dumps(whole, sort_keys=True, indent=2, ensure_ascii=True)
    write_whole(path, f"{text}\n".encode("ascii"))


def read_record(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        DamagedFileError: it is not what was written.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedFileError(path, str(error)) from error
    if not isinstance(record, dict):
        raise DamagedFileError(path, "no JSON object")
    if record.pop(CHECKSUM, None) != checksum(record):
        raise DamagedFileError(path, "its checksum does not agree")
    return record
