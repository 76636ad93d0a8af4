"""Files that are there whole or not at all, and small records in canonical JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

Made = TypeVar("Made")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new empty file next to `path`, which takes its place when the block ends without an error.

    A reader sees the old file or the new one; after a failure the temporary file is gone. Of
    several writers the last one wins. `sweep` removes what a killed process has left.

    Raises:
        OSError: it cannot be written; with the path, and the bytes that came to be written.
    """
    temporary = partial(path)
    _create(temporary, path, "more than 0 bytes are needed").close()
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

    Between the old folder and the new one there is none, for a moment. Of several writers the last
    one wins.
    """
    with scratch(folder) as temporary:
        yield temporary / folder.name
        for file in (temporary / folder.name).iterdir():
            if not file.is_symlink():
                _to_disk(file)
        for attempt in range(FOLDER_ATTEMPTS):
            with suppress(FileNotFoundError):
                folder.rename(temporary / f"old-{attempt}")
            try:
                (temporary / folder.name).rename(folder)
                break
            except OSError as error:  # another writer was faster
                last = attempt + 1 == FOLDER_ATTEMPTS
                if last or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A new empty folder next to `path` that is removed after the block; `sweep` removes what a
    killed process has left."""
    folder = partial(path)
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
    size = f"{len(content):,} bytes were to be written"
    temporary = partial(path)
    file = _create(temporary, path, size)
    try:
        with file:
            write_all(file, content)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritten(error, path, size) from error


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


def write_unsynced(path: Path, parts: Sequence[bytes], folder: Path) -> None:
    """Write a file that is there whole or not at all, and leave it to the system when it reaches
    the disk.

    Args:
        parts: of its content.
        folder: where the temporary file lies, on the same file system.

    Raises:
        OSError: it cannot be written; with the path, and the bytes that were to be written.
    """
    size = f"{sum(map(len, parts)):,} bytes were to be written"
    temporary = partial(folder / path.name)
    file = _create(temporary, path, size)
    try:
        with file:
            for part in parts:
                write_all(file, part)
        _in_folder(path, lambda: temporary.replace(path))
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise unwritten(error, path, size) from error


def _in_folder(path: Path, act: Callable[[], Made]) -> Made:
    """Do something that needs a path's folder, which is made where it is missing."""
    try:
        return act()
    except FileNotFoundError:  # most often it is there, and to look for it takes longer
        path.parent.mkdir(parents=True, exist_ok=True)
        return act()


def _create(temporary: Path, path: Path, size: str) -> FileIO:
    """A file that was not there before, unbuffered; no link is followed.

    Args:
        path: the file that it is for.
        size: how much that takes, in words.

    Raises:
        OSError: it cannot be made, or there is something under its name.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        number = _in_folder(temporary, lambda: os.open(temporary, flags, 0o666))
    except OSError as error:
        raise unwritten(error, path, size) from error
    return os.fdopen(number, "wb", buffering=0)


def _to_disk(path: Path) -> None:
    """From here on the file's content outlives a loss of power."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


PARTIAL = ".partial"
"""How the names of temporary files and folders end."""

FOLDER_ATTEMPTS = 100
"""How often a folder is put in its place while other writers do the same."""


def partial(path: Path) -> Path:
    """A name for a file until it is whole, which no other writer has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")


def sweep(folder: Path, older_than: float) -> None:
    """Remove temporary files and folders that killed processes have left.

    The folders of an array's chunks are passed over: no temporary file lies in them, and there are
    many. No link is followed.

    Args:
        folder: is searched with all that it holds.
        older_than: seconds since a file or folder was last changed; younger ones stay.
    """
    before = time.time() - older_than
    for place, folders, names in os.walk(folder):
        if "zarr.json" in names and "c" in folders:
            folders.remove("c")
        for name in [*folders, *names]:
            path = Path(place, name)
            if name.endswith(PARTIAL) and _changed(path) <= before:
                remove(path)
        folders[:] = [name for name in folders if not name.endswith(PARTIAL)]


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return math.inf


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def unwritten(error: OSError, path: Path, size: str) -> OSError:
    """An error of writing that says which file it was, how much it takes, and what to do."""
    said = f"{error.strerror or error}; {size}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        said += "; make room for it and run again: what is finished or committed counts"
    return OSError(error.errno, said, str(path))


def described(error: BaseException) -> str:
    """What an error says in one line, of the system's the file and not the number."""
    said = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        said = f"{error.filename}: {error.strerror}"
    return " ".join(said.split()) or type(error).__name__


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


def content(path: Path) -> bytes | None:
    """The bytes of a file; None where there is no such file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


class DamagedFileError(ValueError):
    """A file of ours that is not what was written.

    Attributes:
        path: the file; once it is removed, its rule makes it again.
        cause: in words.
    """

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"{path}: damaged ({cause}); run again: it will be recomputed")
        self.path = path
        self.cause = cause


CHECKSUM = "checksum"
"""Key of a record under which it has the checksum of everything else in it."""


def checksum(entry: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that stand for what a record holds, its checksum left out."""
    return fingerprint({key: value for key, value in entry.items() if key != CHECKSUM})[:16]


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as readable JSON with sorted keys; equal records give equal bytes."""
    write_whole(path, _record_bytes(record))


def _record_bytes(record: Mapping[str, Any]) -> bytes:
    whole = {**record, CHECKSUM: checksum(record)}
    text = json.dumps(whole, sort_keys=True, indent=2, ensure_ascii=True)
    return f"{text}\n".encode("ascii")


def check_record(path: Path) -> None:
    """Compare all bytes of a record with what `write_record` writes: JSON has several ways to say
    the same, and only one of them was written.

    Raises:
        DamagedFileError: it is not what was written.
    """
    if path.read_bytes() != _record_bytes(read_record(path)):
        raise DamagedFileError(path, "its bytes are not those that were written")


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
