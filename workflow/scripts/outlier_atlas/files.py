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


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as readable JSON with sorted keys; equal records give equal bytes."""
    with replacing(path) as temporary:
        text = json.dumps(record, sort_keys=True, indent=2, ensure_ascii=True)
        temporary.write_text(text + "\n", encoding="ascii")


def read_record(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        ValueError: the file holds no JSON object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged record ({error}); delete it and run again") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: damaged record (no JSON object); delete it and run again")
    return record
