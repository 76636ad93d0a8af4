"""What `source` of a model or a dataset names."""

from __future__ import annotations

import os.path
import re
from pathlib import Path, PurePath
from typing import Literal

HUB_ID = re.compile(r"(?!.*(--|\.\.))[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
GGUF_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""How the parts of a split GGUF file are named."""
DATA = (".csv", ".jsonl", ".parquet", ".txt")
"""Endings of the data files that are read."""
LOCAL_PREFIXES = ("/", "./", "../", "~")


def source_kind(source: str) -> Literal["builtin", "gguf", "local", "hub"]:
    """Where a model or a dataset comes from, told by its `source` alone.

    A path is recognised by how it begins, so that a folder which happens to have a hub id's name
    never stands in for it; a lone name with a data file's ending is a path, too.
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
    """The path that a local `source` names, with `~` filled in."""
    return Path(os.path.expanduser(source))  # noqa: PTH111 - Path's raises for unknown users


def gguf_parts(path: Path) -> list[Path]:
    """The files that a GGUF file consists of, in order, whichever of them is named.

    The file itself where it is not split; a part may be missing.
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
    """`source`, unless it can name nothing.

    Args:
        known: the built-ins.

    Raises:
        ValueError: it names a built-in that there is not, or is neither a path nor a hub id.
    """
    if "\0" in source:
        raise ValueError("a path has no NUL character")
    if source_kind(source) == "hub" and not HUB_ID.fullmatch(source):
        raise ValueError("neither a hub id (`name`, `owner/name`) nor a path (begins with ./ or /)")
    if source.startswith("builtin:") and source not in known:
        raise ValueError(f"no such built-in; there is {', '.join(known)}")
    return source
