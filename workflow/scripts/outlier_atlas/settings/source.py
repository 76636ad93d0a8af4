"""The `source` of a model or a dataset: built-in, GGUF file, local path or hub id."""

from __future__ import annotations

import os.path
import re
from pathlib import Path, PurePath
from typing import Literal

HUB_ID = re.compile(r"(?!.*(--|\.\.))[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
GGUF_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""File name of a part of a split GGUF file."""
DATA = (".csv", ".jsonl", ".parquet", ".txt")
"""Suffixes of the data files that can be read."""
LOCAL_PREFIXES = ("/", "./", "../", "~")


def source_kind(source: str) -> Literal["builtin", "gguf", "local", "hub"]:
    """Return the kind of a model's or dataset's `source`, without looking at the file system.

    A path is recognized by its prefix, so that a folder with the name of a hub id never replaces
    the hub id. A name with the suffix of a data file is also a path.
    """
    if source.startswith("builtin:"):
        return "builtin"
    if source.endswith(".gguf"):
        return "gguf"
    if source.startswith(LOCAL_PREFIXES) or source in (".", ".."):
        return "local"
    if PurePath(source).suffix in DATA:
        return "local"
    return "hub"


def local_path(source: str) -> Path:
    """Return the path of a local `source`, with `~` expanded."""
    return Path(os.path.expanduser(source))  # noqa: PTH111 - Path's raises for unknown users


def gguf_parts(path: Path) -> list[Path]:
    """Return the parts of a split GGUF file in order, given any of them.

    The result is the file itself if it is not split. A part may be missing on disk.
    """
    match = GGUF_PART.fullmatch(path.name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]):
        return [path]
    numbers = range(1, int(match["count"]) + 1)
    return [
        path.with_name(f"{match['stem']}-{number:05d}-of-{match['count']}.gguf")
        for number in numbers
    ]


def known_source(source: str, known: tuple[str, ...]) -> str:
    """Return `source` if it is well formed, or refuse it.

    Args:
        known: the names of the built-ins.

    Raises:
        ValueError: The source names an unknown built-in, or is neither a path nor a hub id.
    """
    if "\0" in source:
        raise ValueError("contains a NUL character, which no path can have; remove it")
    if source_kind(source) == "hub" and not HUB_ID.fullmatch(source):
        raise ValueError("neither a hub id (`name`, `owner/name`) nor a path (begins with ./ or /)")
    if source.startswith("builtin:") and source not in known:
        raise ValueError(f"no such built-in; take {', '.join(known)}")
    return source
