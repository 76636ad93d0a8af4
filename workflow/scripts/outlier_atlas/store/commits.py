"""Commit records, which list the rows of arrays that count.

The contents of the arrays do not show which rows are valid. A missing chunk reads as the fill
value, and an old chunk looks like a new one. Rows count only once a line of a commit file names
them. The line has the fingerprint of everything that the numbers depend on, and a checksum of the
written values. The line is appended after its rows were written, so a kill in between loses only
those rows. Each job appends to its own file and reads the files of all jobs. `docs/store.md`
describes the format.
"""

from __future__ import annotations

import fcntl
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outlier_atlas.files import CHECKSUM, append, canonical, checksum, replacing
from outlier_atlas.locks import flock
from outlier_atlas.store.layout import Target


@dataclass(frozen=True, order=True)
class Rows:
    """The tokens `start` to `stop` of one chunk."""

    chunk: int
    start: int
    stop: int

    def overlaps(self, other: Rows) -> bool:
        """Return whether a token is in both rows."""
        return self.start < other.stop and other.start < self.stop


Counted = Callable[[Target, int], Sequence[tuple[Rows, str]]]
"""A function that returns the counting rows of a target and chunk, with their checksums."""


@dataclass(frozen=True)
class Commit:
    """Rows that were written, with their targets and their fingerprint.

    Attributes:
        rows: the rows.
        fingerprint: digest of everything that the numbers depend on.
        checksums: checksum of the written values, for each target.
        sequences: parts of the fingerprint, one for each sequence (`Fingerprints.sequences`).
        details: facts that make nothing stale.
    """

    rows: Rows
    fingerprint: str
    checksums: Mapping[Target, str]
    sequences: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """Return the commit as a line of a commit file."""
        arrays: dict[str, dict[str, str]] = defaultdict(dict)
        for target, value in self.checksums.items():
            arrays[target.array][str(target.layer)] = value
        rows = {"chunk": self.rows.chunk, "start": self.rows.start, "stop": self.rows.stop}
        what = {"fingerprint": self.fingerprint, "sequences": list(self.sequences)}
        entry = {**rows, **what, "arrays": arrays, **self.details}
        return canonical({**entry, CHECKSUM: checksum(entry)}) + "\n"

    @classmethod
    def parse(cls, line: str) -> Commit:
        """Parse a line of a commit file.

        Raises:
            ValueError: the line is damaged.
        """
        entry = json.loads(line)
        if not isinstance(entry, dict) or entry.pop(CHECKSUM, None) != checksum(entry):
            raise ValueError("its checksum does not agree")
        rows = Rows(entry.pop("chunk"), entry.pop("start"), entry.pop("stop"))
        checksums = {
            Target(array, int(layer)): value
            for array, layers in entry.pop("arrays").items()
            for layer, value in layers.items()
        }
        fingerprint, sequences = entry.pop("fingerprint"), tuple(entry.pop("sequences"))
        return cls(rows, fingerprint, checksums, sequences, entry)


class Commits:
    """The commits of a run at one moment.

    Attributes:
        damaged: files with damaged complete lines, which do not count.
        cut: files with lines that a kill truncated, which do not count.
    """

    def __init__(self, commits: Iterable[Commit]) -> None:
        self.damaged: list[Path] = []
        self.cut: list[Path] = []
        self._by_chunk: dict[int, list[Commit]] = defaultdict(list)
        self._summaries: dict[tuple[str, int], set[Target]] = defaultdict(set)
        for commit in commits:
            self._by_chunk[commit.rows.chunk].append(commit)
            for target in commit.checksums:
                if target.is_summary:
                    self._summaries[target.site, target.layer].add(target)

    def __iter__(self) -> Iterator[Commit]:
        """Iterate over all commits, chunk by chunk."""
        for of_chunk in self._by_chunk.values():
            yield from of_chunk

    @classmethod
    def load(cls, folder: Path) -> Commits:
        """Read all commit files of a folder."""
        read = {path: _read(path) for path in sorted(folder.glob("*.jsonl"))}
        commits = cls(commit for good, _ in read.values() for commit in good)
        bad = {path: [line.endswith("}") for line in lines] for path, (_, lines) in read.items()}
        commits.damaged = [path for path, ends in bad.items() if any(ends)]
        commits.cut = [path for path, ends in bad.items() if not all(ends)]
        return commits

    @property
    def unreadable(self) -> list[Path]:
        """The files with lines that do not count, because they are damaged or truncated."""
        return sorted({*self.damaged, *self.cut})

    def of(
        self, target: Target, chunk: int, fingerprint: str | None = None
    ) -> list[tuple[Rows, str]]:
        """Return the committed rows of a target with their checksums.

        Args:
            fingerprint: the fingerprint that the commits must have; None for any.
        """
        if target.is_summary:
            return [(rows, value) for _, rows, value in self.serving(target, chunk, fingerprint)]
        return self._exactly(target, chunk, fingerprint)

    def serving(
        self, summary: Target, chunk: int, fingerprint: str | None = None
    ) -> list[tuple[Target, Rows, str]]:
        """Return the committed summaries that can replace another one: target, rows and checksum.

        Their rows do not overlap. The longest rows have priority, then the highest floor.

        Args:
            summary: the summary that is needed.
            chunk: the chunk.
            fingerprint: the fingerprint that the commits must have; None for any.
        """
        alike = self._summaries[summary.site, summary.layer]
        targets = sorted((t for t in alike if t.serves(summary)), key=lambda t: -t.floor)
        candidates = [
            (target, rows, value)
            for target in targets
            for rows, value in self._exactly(target, chunk, fingerprint)
        ]
        taken: list[tuple[Target, Rows, str]] = []
        for each in sorted(candidates, key=lambda each: each[1].start - each[1].stop):
            if not any(each[1].overlaps(rows) for _, rows, _ in taken):
                taken.append(each)
        return sorted(taken, key=lambda each: each[1])

    def _exactly(
        self, target: Target, chunk: int, fingerprint: str | None
    ) -> list[tuple[Rows, str]]:
        return [
            (commit.rows, commit.checksums[target])
            for commit in self._by_chunk.get(chunk, ())
            if fingerprint in (None, commit.fingerprint) and target in commit.checksums
        ]

    def missing(self, targets: Iterable[Target], rows: Rows, fingerprint: str) -> frozenset[Target]:
        """Return the targets with rows that are not committed under a fingerprint."""
        return frozenset(t for t in targets if self.gaps(t, rows, fingerprint))

    def gaps(self, target: Target, rows: Rows, fingerprint: str) -> list[Rows]:
        """Return the rows of a target that are not committed under a fingerprint."""
        gaps, reached = [], rows.start
        for part in sorted(part for part, _ in self.of(target, rows.chunk, fingerprint)):
            if reached < min(part.start, rows.stop):
                gaps.append(Rows(rows.chunk, reached, min(part.start, rows.stop)))
            reached = max(reached, part.stop)
        if reached < rows.stop:
            gaps.append(Rows(rows.chunk, reached, rows.stop))
        return gaps


class CommitFile:
    """The file to which one job appends its commits."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        path.touch()

    def append(self, commit: Commit) -> None:
        """Append a commit as a complete line or not at all."""
        # The file is opened each time, because `revise` in another job may have replaced it.
        with _lock(self._path.parent, fcntl.LOCK_SH):
            append(self._path, _close_off(self._path) + commit.line().encode())


def revise(folder: Path, revised: Callable[[Commit], Commit]) -> int:
    """Change the commits of a folder, before the data of the commits changes.

    Args:
        folder: the folder of the commit files.
        revised: a function that returns the changed commit; commits without targets are removed.

    Returns:
        The number of commits that lost rows or targets.
    """
    if not folder.is_dir():
        return 0
    fewer = 0
    with _lock(folder, fcntl.LOCK_EX):
        for path in sorted(folder.glob("*.jsonl")):
            commits, damaged = _read(path)
            kept = [revised(commit) for commit in commits]
            pairs = list(zip(commits, kept, strict=True))
            fewer += sum(a.rows != b.rows or len(a.checksums) > len(b.checksums) for a, b in pairs)
            text = "".join(commit.line() for commit in kept if commit.checksums)
            if not text:
                path.unlink()
            elif damaged or commits != kept:
                with replacing(path) as temporary:
                    temporary.write_text(text, encoding="ascii")
    return fewer


def without(commit: Commit, void: Callable[[Target], bool]) -> Commit:
    """Return a commit without some targets.

    Args:
        commit: the commit.
        void: a function that returns whether a target is removed.
    """
    kept = {target: value for target, value in commit.checksums.items() if not void(target)}
    return Commit(commit.rows, commit.fingerprint, kept, commit.sequences, commit.details)


@contextmanager
def _lock(folder: Path, kind: int) -> Iterator[None]:
    """Lock a folder of commit files: shared to append, exclusive to revise."""
    with (folder / ".lock").open("w") as file:
        flock(file, kind, folder)
        yield


def _close_off(path: Path) -> bytes:
    """Return a line break if a kill truncated the last line, or no bytes."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        if not end:
            return b""
        file.seek(end - 1)
        return b"" if file.read(1) == b"\n" else b"\n"


def _read(path: Path) -> tuple[list[Commit], list[str]]:
    """Return the commits of a file, and its damaged lines."""
    commits, damaged = [], []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            commits.append(Commit.parse(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            damaged += [line] if line else []
    return commits, damaged
