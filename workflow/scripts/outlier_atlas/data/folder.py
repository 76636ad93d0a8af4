"""Which files of a folder are the dataset: by the rules of the `datasets` library.

The rules are written out here because the Snakefile asks at each start, and `datasets` takes
seconds to import; `tests/test_folder.py` compares the two.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from outlier_atlas.sanitize import gist, shortened
from outlier_atlas.settings.dataset import DatasetSettings
from outlier_atlas.settings.source import DATA as ENDINGS
from outlier_atlas.settings.source import local_path, source_kind

KINDS = {
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".parquet", ".geoparquet", ".gpq"), "parquet"),
    **{f".{kind}": kind for kind in ("arrow", "xml", "conll", "lance", "h5", "tar", "zip")},
    ".txt": "text",
}
"""Endings of text data that `datasets` knows, with the kind of file that each one is."""
PREFERRED = (".parquet", ".lance", ".arrow", ".jsonl", ".json", ".csv")
"""Endings in the order in which they win where two kinds have as many files."""
IGNORED = {
    "README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dummy_data.zip",
    "dataset_dict.json",
}  # fmt: skip
NOTICE = re.compile(
    r"(readme|licen[cs]es?|copying|notice|citation|authors|changelog)\b.*\.txt", re.I
)
"""Texts about a dataset; `datasets` takes them for data, and we do not."""
ABOUT = "about the dataset, no part of it"
SEPARATORS = "[-._ 0-9]"
KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHARDED = re.compile(r"data/(?P<split>[^/]*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
CARDS = ("README.md", ".huggingface.yaml")

Patterns = Mapping[str, Sequence[str]]
"""Patterns of the files of each split."""


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset in their order, and the ignored files with the reason."""

    files: tuple[Path, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)


def find(settings: DatasetSettings) -> DatasetFiles:
    """The files of a local dataset.

    Raises:
        ValueError: there are none, or one of them cannot be read.
        OSError: a folder may not be read.
    """
    path = local_path(settings.source)
    where = f"dataset.source = {settings.source!r}"
    if path.is_dir():
        return _in_folder(settings, path, where)
    _refuse_irregular(path, where)
    if path.suffix not in ENDINGS:
        known = ", ".join(ENDINGS)
        raise ValueError(f"{where}: ends in {path.suffix or 'nothing'!r}; known are {known}")
    if settings.files or settings.subset or settings.split != "train":
        setting = "files" if settings.files else "subset" if settings.subset else "split"
        raise ValueError(f"{where}: a single file; dataset.{setting} is for a folder, leave it out")
    return DatasetFiles((path,))


def local_files(settings: DatasetSettings) -> dict[str, Path]:
    """The files of a local dataset, by their names in its folder.

    None where something is wrong with them: that is the job's to say.
    """
    if source_kind(settings.source) != "local":
        return {}
    path = local_path(settings.source)
    try:
        files = find(settings).files
    except (ValueError, OSError):
        return {}
    return {os.path.relpath(file, path) if file != path else file.name: file for file in files}


def _in_folder(settings: DatasetSettings, folder: Path, where: str) -> DatasetFiles:
    names = _names(folder)
    if settings.files:
        chosen = _named(settings.files, names, where)
        reasons = dict.fromkeys(names, "not named in dataset.files")
    else:
        patterns = _patterns(settings, folder, names, where)
        if settings.split not in patterns:
            there = shortened(", ".join(patterns), 120)
            raise ValueError(
                f"{where}: there is no split {settings.split!r}; there is {there} (dataset.split, "
                f"or name the files: dataset.files)"
            )
        reasons = dict.fromkeys(names, f"of another split than {settings.split}")
        reasons |= {name: "hidden" for name in names if _hidden(name, "**")}
        matched = _matches(patterns[settings.split], names)
        for pattern in patterns[settings.split]:
            if not set(pattern) & set("*?[") and not _matches([pattern], names):
                raise ValueError(f"{where}: its README.md names {pattern!r}, which is not in it")
        notices = [name for name in matched if NOTICE.fullmatch(name.rsplit("/", 1)[-1])]
        reasons |= dict.fromkeys(notices, ABOUT)
        data = [name for name in matched if reasons[name] != ABOUT]
        chosen, kind = _of_one_kind(data, where)
        taken = set(chosen)
        reasons |= {n: f"another kind of file than {kind}" for n in data if n not in taken}
    for name in chosen:
        _refuse_irregular(folder / name, where)
    reasons |= {name: "a link to a folder" for name in names if name.endswith("/")}
    for name in chosen:
        del reasons[name]
    skipped = {n: why for n, why in reasons.items() if n.endswith((*KINDS, "/"))}
    return DatasetFiles(tuple(folder / name for name in chosen), skipped)


def _names(folder: Path) -> list[str]:
    """All that lies in a folder, as paths relative to it, sorted as text.

    Folders are left out; a link to one is not followed, and its name ends in a slash.
    """

    def stop(error: OSError) -> None:
        raise error

    found = []
    for root, folders, files in os.walk(folder, onerror=stop):
        below = PurePosixPath(Path(root).relative_to(folder).as_posix())
        found += [str(below / name) for name in files]
        found += [f"{below / name}/" for name in folders if (Path(root) / name).is_symlink()]
    return sorted(found)


def _refuse_irregular(path: Path, where: str) -> None:
    """Only a regular file is read: a FIFO would wait for its writer forever."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        if path.is_symlink():
            raise ValueError(f"{path}: a link to nothing; what it leads to is missing") from error
        raise ValueError(f"{where}: no such file or folder") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: no regular file (a folder, FIFO, socket or device)")


def _named(patterns: Sequence[str], names: Sequence[str], where: str) -> list[str]:
    for pattern in patterns:
        if not _matches([pattern], names):
            raise ValueError(f"{where}: no file matches {pattern!r} (dataset.files)")
    chosen = _matches(patterns, names)
    unknown = [name for name in chosen if not name.endswith(ENDINGS)]
    if unknown:
        raise ValueError(
            f"{where}: dataset.files names {unknown[0]!r}; known endings are {', '.join(ENDINGS)}"
        )
    return chosen


def _patterns(
    settings: DatasetSettings, folder: Path, names: Sequence[str], where: str
) -> Patterns:
    """The patterns of each split: of the dataset card, or by the names of the files."""
    subsets = _subsets(folder, names)
    if not subsets:
        if settings.subset is not None:
            raise ValueError(f"{where}: no subset {settings.subset!r}: its README.md names none")
        return _by_name(names, where)
    name = settings.subset or _default(subsets)
    if name not in subsets:
        there = shortened(", ".join(subsets), 120)
        raise ValueError(
            f"{where}: its README.md names the subsets {there}: take one as dataset.subset"
        )
    held = subsets[name]
    if held.get("data_files") is not None:
        return _from_card(held["data_files"], where)
    below = str(held.get("data_dir") or "").strip("./")
    within = [n.removeprefix(f"{below}/") for n in names if not below or n.startswith(f"{below}/")]
    found = _by_name(within, where)
    return {s: [f"{below}/{p}" if below else p for p in found[s]] for s in found}


def _default(subsets: Mapping[str, Any]) -> str:
    marked = [name for name, held in subsets.items() if held.get("default")]
    return marked[0] if marked else next(iter(subsets)) if len(subsets) == 1 else "default"


def _subsets(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The subsets that a dataset's card names, each with its settings."""
    configs: Any = None
    for card in CARDS:
        if card not in names or not (folder / card).is_file():
            continue
        try:
            text = (folder / card).read_text("utf-8")
            if card == "README.md":
                match = re.match(r"\s*---\r?\n(.*?)\r?\n---(\r?\n|$)", text, re.S)
                text = match[1] if match else ""
            held = yaml.safe_load(text)
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"{folder / card}: its YAML cannot be read ({gist(error)})") from error
        if isinstance(held, dict):
            configs = held.get("configs", configs)
    if not configs:
        return {}
    right = isinstance(configs, list) and all(
        isinstance(held, dict) and isinstance(held.get("config_name"), str) for held in configs
    )
    if not right:
        raise ValueError(f"{folder}: `configs` of its README.md is no list of named subsets")
    return {held["config_name"]: held for held in configs}


def _from_card(held: Any, where: str) -> Patterns:
    if isinstance(held, str):
        return {"train": [held]}
    if isinstance(held, list) and all(isinstance(item, str) for item in held):
        return {"train": held}
    splits: dict[str, list[str]] = {}
    for item in held if isinstance(held, list) else [held]:
        path = item.get("path") if isinstance(item, dict) else None
        if not isinstance(path, str | list) or not isinstance(item.get("split"), str):
            raise ValueError(f"{where}: `data_files` of its README.md is not what it should be")
        splits[item["split"]] = [path] if isinstance(path, str) else [str(each) for each in path]
    return splits


def _by_name(names: Sequence[str], where: str) -> Patterns:
    """The patterns of each split, from the names of files and folders."""
    shown = _matches(["**"], names)
    matches = (SHARDED.fullmatch(name) for name in shown)
    sharded = sorted({match["split"] for match in matches if match})
    if sharded:
        digits = "[0-9]" * 5
        return {split: [f"data/{split}-{digits}-of-{digits}*.*"] for split in sharded}
    for build in (_folder_patterns, _file_patterns):
        found = {split: build(words) for split, words in KEYWORDS.items()}
        filled = {split: patterns for split, patterns in found.items() if _matches(patterns, names)}
        if filled:
            return filled
    if not shown:
        raise ValueError(f"{where}: the folder holds no file that ends in {', '.join(ENDINGS)}")
    return {"train": ["**"]}


def _folder_patterns(words: Iterable[str]) -> list[str]:
    s = SEPARATORS
    forms = ("**/{w}/**", "**/{w}{s}*/**", "**/*{s}{w}/**", "**/*{s}{w}{s}*/**")
    return [form.format(w=word, s=s) for word in words for form in forms]


def _file_patterns(words: Iterable[str]) -> list[str]:
    forms = ("**/{w}{s}*", "**/*{s}{w}{s}*")
    return [form.format(w=word, s=SEPARATORS) for word in words for form in forms]


def _of_one_kind(names: Sequence[str], where: str) -> tuple[list[str], str]:
    """The files of the kind that most of them are, and its name.

    Raises:
        ValueError: there are none, or one that `datasets` would read with them cannot be read here.
    """
    suffixes = {
        name: ["." + part for part in name.rsplit("/", 1)[-1].split(".")[1:]] for name in names
    }
    counted = Counter(s.lower() for found in suffixes.values() for s in found if s.lower() in KINDS)
    if not counted:
        raise ValueError(f"{where}: the folder holds no file that ends in {', '.join(ENDINGS)}")
    order = [*reversed(PREFERRED)]
    most = max(counted, key=lambda s: (counted[s], order.index(s) if s in order else -1, s))
    kind = KINDS[most]
    chosen = [n for n, found in suffixes.items() if any(KINDS.get(s) == kind for s in found)]
    unread = [name for name in chosen if not name.endswith(ENDINGS)]
    if unread:
        raise ValueError(
            f"{where}: {unread[0]!r} is one of its files, and only {', '.join(ENDINGS)} are read "
            f"here: convert or unpack it, or name others in dataset.files"
        )
    return chosen, most


def _matches(patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """The names that patterns match, pattern by pattern, each once."""
    found: dict[str, None] = {}
    names = [name for name in names if not name.endswith("/")]
    for pattern in patterns:
        plain = pattern.removeprefix("./")
        regex = re.compile(_regex(plain))
        asked = plain.rsplit("/", 1)[-1]
        for name in names:
            ignored = _ignored(name) and name.rsplit("/", 1)[-1] != asked
            if regex.fullmatch(name) and not _hidden(name, plain) and not ignored:
                found[name] = None
    return list(found)


def _regex(pattern: str) -> str:
    """A pattern of paths as a regular expression: `*` stays in a folder, `**` does not."""
    parts = pattern.split("/")
    expression = ""
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            expression += ".+" if last else "(?:.+/)?"
        else:
            expression += _part(part) + ("" if last else "/")
    return f"(?s:{expression})"


def _part(part: str) -> str:
    """A part of a pattern between two slashes."""
    expression = ""
    for token in re.findall(r"\[[!^]?\]?[^\]]*\]|.", part, re.S):
        if token == "*":
            expression += "[^/]*"
        elif token == "?":
            expression += "[^/]"
        elif len(token) > 1:
            inside = token[1:-1].replace("\\", "\\\\").replace("[", "\\[")
            expression += "[^" + inside[1:] + "]" if inside[0] in "!^" else f"[{inside}]"
        else:
            expression += re.escape(token)
    return expression


def _ignored(name: str) -> bool:
    return name.rsplit("/", 1)[-1] in IGNORED


def _hidden(name: str, pattern: str) -> bool:
    """Whether a path has hidden parts that a pattern does not ask for."""

    def hidden(path: str) -> int:
        return sum(part.startswith(".") for part in path.split("/"))

    def special(path: str) -> int:
        return sum(part.startswith("__") for part in path.split("/")[:-1])

    return hidden(name) != hidden(pattern) or special(name) != special(pattern)
