"""Atomic writing of files, and small records in canonical JSON."""

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

from outlier_atlas.phases import WRITE, phase

Result = TypeVar("Result")


@contextmanager
def replacing(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Yield a new empty file that replaces `path` when the block ends without an error.

    A reader sees either the old file or the new one. The temporary file is removed after a failure;
    `sweep` removes those of killed processes. The last of several writers wins.

    Args:
        path: the file.
        folder: folder for the temporary file, on the same file system; by default that of `path`.

    Raises:
        OSError: The file cannot be written. The message has the path and the bytes written so far.
    """
    temporary = partial((folder or path.parent) / path.name)
    _create(temporary, path, "more than 0 bytes are needed").close()
    try:
        yield temporary
        _to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        size = temporary.stat().st_size if temporary.exists() else 0
        raise write_error(error, path, f"more than {size:,} bytes are needed") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield the path of a folder that the block creates, and that replaces `folder` at its end.

    For a moment, neither the old folder nor the new one exists under the name. The last of several
    writers wins.
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
    """Yield a new empty folder next to `path` that is removed after the block.

    `sweep` removes the folders of killed processes.
    """
    folder = partial(path)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@phase(WRITE)
def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically, synced to disk.

    Raises:
        OSError: The file cannot be written. The message has the path and the number of bytes.
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
        raise write_error(error, path, size) from error


@phase(WRITE)
def append(path: Path, content: bytes) -> None:
    """Append all of `content` to a file, or nothing.

    Raises:
        OSError: The file cannot be written. The message has the path and the number of bytes.
    """
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            write_all(file, content)
        except OSError as error:
            file.truncate(end)
            raise write_error(error, path, f"{len(content):,} bytes were to be written") from error


def write_all(file: FileIO, content: bytes) -> None:
    """Write all of `content` to an unbuffered file.

    A single `write` to a nearly full disk writes only a part of it; the next one raises.
    """
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


@phase(WRITE)
def write_unsynced(path: Path, parts: Sequence[bytes], folder: Path) -> None:
    """Write a file atomically, without waiting until it reaches the disk.

    Args:
        path: the file.
        parts: parts of the content, in order.
        folder: folder for the temporary file, on the same file system.

    Raises:
        OSError: The file cannot be written. The message has the path and the number of bytes.
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
        raise write_error(error, path, size) from error


def _in_folder(path: Path, act: Callable[[], Result]) -> Result:
    """Call a function that needs the folder of a path, which is created if it is missing."""
    try:
        return act()
    except FileNotFoundError:  # rare; a check before each call would take longer
        path.parent.mkdir(parents=True, exist_ok=True)
        return act()


def _create(temporary: Path, path: Path, size: str) -> FileIO:
    """Create a new file without following links, and open it unbuffered.

    Args:
        temporary: the file to create.
        path: the file that it will replace, for the message.
        size: the needed size in words, for the message.

    Raises:
        OSError: The file cannot be created, or its name exists.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        number = _in_folder(temporary, lambda: os.open(temporary, flags, 0o666))
    except OSError as error:
        raise write_error(error, path, size) from error
    return os.fdopen(number, "wb", buffering=0)


@phase(WRITE)
def _to_disk(path: Path) -> None:
    """Sync a file to disk, so that its content survives a loss of power."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


PARTIAL = ".partial"
"""Suffix of the names of temporary files and folders."""

FOLDER_ATTEMPTS = 100
"""Maximum number of attempts to move a folder into place while other writers do the same."""


def partial(path: Path) -> Path:
    """Return a unique temporary name for a file that is not complete yet."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")


def sweep(folder: Path, older_than: float) -> None:
    """Remove the temporary files and folders of killed processes.

    Folders with chunks of arrays are skipped: they are many, and have no temporary files. Links are
    not followed.

    Args:
        folder: folder that is searched with its subfolders.
        older_than: least age in seconds, since the last change, of what is removed.
    """
    before = time.time() - older_than
    for parent, folders, names in os.walk(folder):
        if "zarr.json" in names and "c" in folders:
            folders.remove("c")
        for name in [*folders, *names]:
            if name.endswith(PARTIAL) and _changed(path := Path(parent, name)) <= before:
                remove(path)
        folders[:] = [name for name in folders if not name.endswith(PARTIAL)]


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return math.inf


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_error(error: OSError, path: Path, size: str) -> OSError:
    """Return an error of writing that names the file, the needed size and the remedy."""
    message = f"{error.strerror or error}; {size}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        message += "; make room and run again: finished and committed results are kept"
    return OSError(error.errno, message, str(path))


def described(error: BaseException) -> str:
    """Return the message of an error in one line; for a system error the file and the reason."""
    message = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        message = f"{error.filename}: {error.strerror}"
    return " ".join(message.split()) or type(error).__name__


def readable(path: Path) -> str:
    """Return a path relative to the working directory if it is inside it, as Snakemake shows it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def canonical(value: Any) -> str:
    """Return canonical JSON: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def fingerprint(value: Any) -> str:
    """Return the sha256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content(path: Path) -> bytes | None:
    """Return the bytes of a file; None if it does not exist."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


class DamagedFileError(ValueError):
    """A file of the project that differs from what was written.

    Attributes:
        path: the file; its rule makes it again after it was removed.
        cause: description of the damage.
    """

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"{path}: damaged ({cause}); run again: it will be recomputed")
        self.path = path
        self.cause = cause


CHECKSUM = "checksum"
"""Key of a record with the checksum of all other entries."""


def checksum(entry: Mapping[str, Any]) -> str:
    """Return a checksum of 16 hexadecimal digits over a record without its checksum."""
    return fingerprint({key: value for key, value in entry.items() if key != CHECKSUM})[:16]


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as readable JSON with sorted keys; equal records give equal bytes."""
    write_whole(path, _record_bytes(record))


def _record_bytes(record: Mapping[str, Any]) -> bytes:
    with_checksum = {**record, CHECKSUM: checksum(record)}
    text = json.dumps(with_checksum, sort_keys=True, indent=2, ensure_ascii=True)
    return f"{text}\n".encode("ascii")


def read_once(read: Callable[[Path], Result]) -> Callable[[Path], Result]:
    """Return a function that reads a file again only if the file was replaced.

    Args:
        read: a function that reads a file. What it returns is shared, and must not be changed.
    """
    known: dict[Path, tuple[tuple[int, ...], Result]] = {}

    def reading(path: Path) -> Result:
        try:
            stat = path.stat()
        except OSError:
            return read(path)  # which says what is wrong, or what a missing file means
        state = stat.st_ino, stat.st_size, stat.st_mtime_ns
        if path not in known or known[path][0] != state:
            known[path] = state, read(path)
        return known[path][1]

    return reading


def check_record(path: Path) -> None:
    """Check that the bytes of a record are those that `write_record` writes.

    `read_record` accepts other spellings of the same JSON.

    Raises:
        DamagedFileError: The file differs from what was written.
    """
    if path.read_bytes() != _record_bytes(read_record(path)):
        raise DamagedFileError(path, "its bytes are not those that were written")


def read_record(path: Path) -> dict[str, Any]:
    """Read a record and check its checksum.

    Raises:
        DamagedFileError: The file differs from what was written.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedFileError(path, str(error)) from error
    if not isinstance(record, dict):
        raise DamagedFileError(path, "not a JSON object")
    if record.pop(CHECKSUM, None) != checksum(record):
        raise DamagedFileError(path, "its checksum does not agree")
    return record
