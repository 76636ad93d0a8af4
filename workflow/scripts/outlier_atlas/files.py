"""Files that are there whole or not at all, and small records in canonical JSON."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends without an error.

    A reader sees the old file or the new one; after a failure the temporary file is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
    with replacing(path) as temporary:
        whole = {**record, CHECKSUM: checksum(record)}
        text = json.dumps(whole, sort_keys=True, indent=2, ensure_ascii=True)
        temporary.write_text(text + "\n", encoding="ascii")


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
