"""Selection of the files of a folder that form a dataset, by the rules of the `datasets` library.

The rules are implemented here because the Snakefile needs them at each start, and `datasets` takes
seconds to import. `tests/test_folder.py` compares the two.
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
"""Kinds of files that `datasets` knows for text data, by suffix."""
PREFERRED = (".parquet", ".lance", ".arrow", ".jsonl", ".json", ".csv")
"""Suffixes in the order of preference between kinds with equally many files."""
IGNORED = {
    "README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dummy_data.zip",
    "dataset_dict.json",
}  # fmt: skip
NOTICE = re.compile(
    r"(readme|licen[cs]es?|copying|notice|citation|authors|changelog)\b.*\.txt", re.I
)
"""Text files that describe a dataset; `datasets` reads them as data, which we do not."""
ABOUT = "about the dataset, not part of it"
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
    """Return the files of a local dataset.

    Raises:
        ValueError: There are no files, or one of them cannot be read.
        OSError: A folder cannot be read.
    """
    path = local_path(settings.source)
    where = f"dataset.source = {settings.source!r}"
    if path.is_dir():
        return _in_folder(settings, path, where)
    _refuse_irregular(path, where)
    if path.suffix not in ENDINGS:
        known = ", ".join(ENDINGS)
        raise ValueError(
            f"{where}: ends in {path.suffix or 'nothing'!r}; known endings are {known}"
        )
    if settings.files or settings.subset or settings.split != "train":
        setting = "files" if settings.files else "subset" if settings.subset else "split"
        raise ValueError(
            f"{where}: a single file; dataset.{setting} applies to folders only, remove it"
        )
    return DatasetFiles((path,))


def local_files(settings: DatasetSettings) -> dict[str, Path]:
    """Return the files of a local dataset, by their names in its folder.

    The result is empty if the dataset is not local or invalid; the job reports what is wrong.
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
            splits = shortened(", ".join(patterns), 120)
            raise ValueError(
                f"{where}: there is no split {settings.split!r}; its splits are {splits}: set "
                f"dataset.split, or name the files in dataset.files"
            )
        reasons = dict.fromkeys(names, f"of another split than {settings.split}")
        reasons |= {name: "hidden" for name in names if _hidden(name, "**")}
        matched = _matches(patterns[settings.split], names)
        for pattern in patterns[settings.split]:
            if not set(pattern) & set("*?[") and not _matches([pattern], names):
                raise ValueError(
                    f"{where}: its README.md names {pattern!r}, and the folder has no such file"
                )
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
    """Return the relative paths of all files in a folder and its subfolders, sorted as text.

    A link to a folder is not followed; it is listed with a slash at the end.
    """

    def stop(error: OSError) -> None:
        raise error

    names = []
    for root, folders, files in os.walk(folder, onerror=stop):
        below = PurePosixPath(Path(root).relative_to(folder).as_posix())
        names += [str(below / name) for name in files]
        names += [f"{below / name}/" for name in folders if (Path(root) / name).is_symlink()]
    return sorted(names)


def _refuse_irregular(path: Path, where: str) -> None:
    """Refuse everything but a regular file: reading a FIFO would wait for its writer forever."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        if path.is_symlink():
            raise ValueError(f"{path}: a broken link; its target is missing") from error
        raise ValueError(f"{where}: no such file or folder") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: not a regular file (a folder, FIFO, socket or device)")


def _named(patterns: Sequence[str], names: Sequence[str], where: str) -> list[str]:
    for pattern in patterns:
        if not _matches([pattern], names):
            raise ValueError(
                f"{where}: no file matches {pattern!r}; correct the pattern in dataset.files"
            )
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
    """Return the patterns of each split, from the dataset card or from the names of the files."""
    subsets = _subsets(folder, names)
    if not subsets:
        if settings.subset is not None:
            raise ValueError(
                f"{where}: no subset {settings.subset!r}: its README.md names none; remove "
                f"dataset.subset"
            )
        return _by_name(names, where)
    name = settings.subset or _default(subsets)
    if name not in subsets:
        names_of_subsets = shortened(", ".join(subsets), 120)
        raise ValueError(
            f"{where}: its README.md names the subsets {names_of_subsets}: take one as "
            f"dataset.subset"
        )
    entry = subsets[name]
    if entry.get("data_files") is not None:
        return _from_card(entry["data_files"], where)
    below = str(entry.get("data_dir") or "").strip("./")
    within = [n.removeprefix(f"{below}/") for n in names if not below or n.startswith(f"{below}/")]
    patterns = _by_name(within, where)
    return {s: [f"{below}/{p}" if below else p for p in patterns[s]] for s in patterns}


def _default(subsets: Mapping[str, Any]) -> str:
    marked = [name for name, entry in subsets.items() if entry.get("default")]
    return marked[0] if marked else next(iter(subsets)) if len(subsets) == 1 else "default"


def _subsets(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the settings of the subsets that a dataset's card names."""
    configs: Any = None
    for card in CARDS:
        if card not in names or not (folder / card).is_file():
            continue
        try:
            text = (folder / card).read_text("utf-8")
            if card == "README.md":
                match = re.match(r"\s*---\r?\n(.*?)\r?\n---(\r?\n|$)", text, re.S)
                text = match[1] if match else ""
            metadata = yaml.safe_load(text)
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"{folder / card}: its YAML cannot be read ({gist(error)})") from error
        if isinstance(metadata, dict):
            configs = metadata.get("configs", configs)
    if not configs:
        return {}
    well_formed = isinstance(configs, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("config_name"), str) for entry in configs
    )
    if not well_formed:
        raise ValueError(f"{folder}: `configs` of its README.md must be a list of named subsets")
    return {entry["config_name"]: entry for entry in configs}


def _from_card(data_files: Any, where: str) -> Patterns:
    if isinstance(data_files, str):
        return {"train": [data_files]}
    if isinstance(data_files, list) and all(isinstance(item, str) for item in data_files):
        return {"train": data_files}
    splits: dict[str, list[str]] = {}
    for item in data_files if isinstance(data_files, list) else [data_files]:
        path = item.get("path") if isinstance(item, dict) else None
        if not isinstance(path, str | list) or not isinstance(item.get("split"), str):
            raise ValueError(
                f"{where}: `data_files` of its README.md must be paths, or items with `split` and "
                f"`path`"
            )
        splits[item["split"]] = [path] if isinstance(path, str) else [str(each) for each in path]
    return splits


def _by_name(names: Sequence[str], where: str) -> Patterns:
    """Return the patterns of each split, from the names of files and folders."""
    visible_names = _matches(["**"], names)
    matches = (SHARDED.fullmatch(name) for name in visible_names)
    sharded = sorted({match["split"] for match in matches if match})
    if sharded:
        digits = "[0-9]" * 5
        return {split: [f"data/{split}-{digits}-of-{digits}*.*"] for split in sharded}
    for build in (_folder_patterns, _file_patterns):
        patterns = {split: build(words) for split, words in KEYWORDS.items()}
        matching = {split: each for split, each in patterns.items() if _matches(each, names)}
        if matching:
            return matching
    if not visible_names:
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
    """Return the files of the most frequent kind, and its suffix.

    Raises:
        ValueError: There are no files, or a file of this kind cannot be read here.
    """
    suffixes = {
        name: ["." + part for part in name.rsplit("/", 1)[-1].split(".")[1:]] for name in names
    }
    counted = Counter(s.lower() for each in suffixes.values() for s in each if s.lower() in KINDS)
    if not counted:
        raise ValueError(f"{where}: the folder holds no file that ends in {', '.join(ENDINGS)}")
    order = [*reversed(PREFERRED)]
    most = max(counted, key=lambda s: (counted[s], order.index(s) if s in order else -1, s))
    kind = KINDS[most]
    chosen = [n for n, each in suffixes.items() if any(KINDS.get(s) == kind for s in each)]
    unread = [name for name in chosen if not name.endswith(ENDINGS)]
    if unread:
        raise ValueError(
            f"{where}: {unread[0]!r} is one of its files, and only {', '.join(ENDINGS)} can be "
            f"read: convert or unpack it, or name other files in dataset.files"
        )
    return chosen, most


def _matches(patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Return the names that patterns match, in the order of the patterns, without repeats."""
    matching: dict[str, None] = {}
    names = [name for name in names if not name.endswith("/")]
    for pattern in patterns:
        plain = pattern.removeprefix("./")
        regex = re.compile(_regex(plain))
        basename = plain.rsplit("/", 1)[-1]
        for name in names:
            ignored = _ignored(name) and name.rsplit("/", 1)[-1] != basename
            if regex.fullmatch(name) and not _hidden(name, plain) and not ignored:
                matching[name] = None
    return list(matching)


def _regex(pattern: str) -> str:
    """Return a pattern of paths as a regular expression: `**` matches slashes, `*` does not."""
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
    """Return the regular expression of a pattern's component between two slashes."""
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
    """Return whether a path has hidden components that the pattern does not name."""

    def hidden(path: str) -> int:
        return sum(part.startswith(".") for part in path.split("/"))

    def special(path: str) -> int:
        return sum(part.startswith("__") for part in path.split("/")[:-1])

    return hidden(name) != hidden(pattern) or special(name) != special(pattern)
