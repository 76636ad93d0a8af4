"""Commit records: which rows of which arrays count.

What lies in the arrays proves nothing: a missing chunk reads as the fill value, and an old one
looks like a new one. So rows count only once a line of a commit file names them, with the
fingerprint of all that their numbers depend on. A line is appended after its rows were written; a
kill in between costs those rows and nothing else. Each job appends to a file of its own, and reads
the files of all.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from outlier_atlas.files import append, canonical, replacing
from outlier_atlas.store.layout import Target

COMMITS = Path("manifests") / "commits"
"""Folder of the commit files, seen from the run's folder."""


@dataclass(frozen=True)
class Rows:
    """Tokens `start` to `stop` of one chunk."""

    chunk: int
    start: int
    stop: int


@dataclass(frozen=True)
class Commit:
    """Rows that were written, of which targets, under which fingerprint."""

    rows: Rows
    fingerprint: str
    targets: frozenset[Target]
    details: Mapping[str, Any]

    def line(self) -> str:
        arrays: dict[str, list[int]] = defaultdict(list)
        for target in sorted(self.targets):
            arrays[target.array].append(target.layer)
        rows = {"chunk": self.rows.chunk, "start": self.rows.start, "stop": self.rows.stop}
        entry = rows | {"fingerprint": self.fingerprint, "arrays": arrays, **self.details}
        return canonical(entry) + "\n"

    @classmethod
    def parse(cls, line: str) -> Commit:
        entry = json.loads(line)
        rows = Rows(entry.pop("chunk"), entry.pop("start"), entry.pop("stop"))
        targets = frozenset(
            Target(array, layer)
            for array, layers in entry.pop("arrays").items()
            for layer in layers
        )
        return cls(rows, entry.pop("fingerprint"), targets, entry)


class Commits:
    """The commits of a run, as its files hold them at this moment."""

    def __init__(self, commits: Iterable[Commit]) -> None:
        self._by_chunk: dict[int, list[Commit]] = defaultdict(list)
        for commit in commits:
            self._by_chunk[commit.rows.chunk].append(commit)

    @classmethod
    def load(cls, folder: Path) -> Commits:
        """Read all commit files of a folder; a line that a kill cut short does not count."""
        return cls(commit for path in sorted(folder.glob("*.jsonl")) for commit in _read(path))

    def missing(self, targets: Iterable[Target], rows: Rows, fingerprint: str) -> frozenset[Target]:
        """Those of the targets whose rows are not all committed under this fingerprint."""
        current = [c for c in self._by_chunk[rows.chunk] if c.fingerprint == fingerprint]
        return frozenset(
            target
            for target in targets
            if not _covered(rows, [c.rows for c in current if target in c.targets])
        )


class CommitFile:
    """The file that one job appends its commits to."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
            append(path, b"\n")  # a kill cut the last line short: close it off

    def append(self, commit: Commit) -> None:
        """Append a commit, all of it or nothing."""
        append(self._path, commit.line().encode())


def forget(folder: Path, void: Callable[[Commit, Target], bool]) -> int:
    """Take targets out of the commits of a folder, before their content goes.

    Only while no job of the run is at work.

    Args:
        void: whether a target of a commit does not count any more.

    Returns:
        How many commits lost targets.
    """
    changed = 0
    for path in sorted(folder.glob("*.jsonl")):
        commits = list(_read(path))
        kept = [
            replace(c, targets=frozenset(t for t in c.targets if not void(c, t))) for c in commits
        ]
        lost = sum(a.targets != b.targets for a, b in zip(commits, kept, strict=True))
        if lost:
            changed += lost
            with replacing(path) as temporary:
                text = "".join(commit.line() for commit in kept if commit.targets)
                temporary.write_text(text, encoding="ascii")
    return changed


def _read(path: Path) -> Iterator[Commit]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield Commit.parse(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue


def _covered(rows: Rows, parts: Sequence[Rows]) -> bool:
    reached = rows.start
    for part in sorted(parts, key=lambda p: p.start):
        if part.start > reached:
            break
        reached = max(reached, part.stop)
    return reached >= rows.stop
