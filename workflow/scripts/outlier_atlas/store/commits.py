"""Commit records: which rows of which arrays count.

The contents of the arrays prove nothing: a missing chunk reads as the fill value, and an old chunk
looks like a new one. So rows count only once a line of a commit file names them, with the
fingerprint of everything that their numbers depend on and a checksum of what was written. A line is
appended after its rows were written; a kill in between costs those rows and nothing else. Each job
appends to a file of its own, and reads the files of all jobs. `docs/store.md` describes the format.
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
    """Tokens `start` to `stop` of one chunk."""

    chunk: int
    start: int
    stop: int

    def overlaps(self, other: Rows) -> bool:
        """Whether a token is in both rows."""
        return self.start < other.stop and other.start < self.stop


Counted = Callable[[Target, int], Sequence[tuple[Rows, str]]]
"""Returns the rows that count of a target and a chunk, and their checksums."""


@dataclass(frozen=True)
class Commit:
    """Rows that were written, with their targets and their fingerprint.

    Attributes:
        rows: the rows.
        fingerprint: stands for everything that the numbers depend on.
        checksums: the checksum of what was written, for each target.
        sequences: the parts of the fingerprint, one for each sequence: `Fingerprints.sequences`.
        details: facts that make nothing stale.
    """

    rows: Rows
    fingerprint: str
    checksums: Mapping[Target, str]
    sequences: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """Return the line of a commit file."""
        arrays: dict[str, dict[str, str]] = defaultdict(dict)
        for target, value in self.checksums.items():
            arrays[target.array][str(target.layer)] = value
        rows = {"chunk": self.rows.chunk, "start": self.rows.start, "stop": self.rows.stop}
        what = {"fingerprint": self.fingerprint, "sequences": list(self.sequences)}
        entry = {**rows, **what, "arrays": arrays, **self.details}
        return canonical({**entry, CHECKSUM: checksum(entry)}) + "\n"

    @classmethod
    def parse(cls, line: str) -> Commit:
        """Return the commit of a line.

        Raises:
            ValueError: the line is not what was written.
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
        damaged: files with whole lines that are not what was written; such lines do not count.
        cut: files with lines that a kill cut short; such lines do not count.
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
        """The files with lines that do not count, for either reason."""
        return sorted({*self.damaged, *self.cut})

    def of(
        self, target: Target, chunk: int, fingerprint: str | None = None
    ) -> list[tuple[Rows, str]]:
        """Return the rows of a target that are committed, and their checksums.

        Args:
            fingerprint: the fingerprint that the commits must have; None for any.
        """
        if target.is_summary:
            return [(rows, value) for _, rows, value in self.serving(target, chunk, fingerprint)]
        return self._exactly(target, chunk, fingerprint)

    def serving(
        self, summary: Target, chunk: int, fingerprint: str | None = None
    ) -> list[tuple[Target, Rows, str]]:
        """Return the committed summaries that serve as another one: target, rows and checksum.

        Their rows do not overlap: the longest rows come first, and of equal rows the summary with
        the highest floor.

        Args:
            summary: the summary that is needed.
            chunk: the chunk.
            fingerprint: the fingerprint that the commits must have; None for any.
        """
        alike = self._summaries[summary.site, summary.layer]
        targets = sorted((t for t in alike if t.serves(summary)), key=lambda t: -t.floor)
        found = [
            (target, rows, value)
            for target in targets
            for rows, value in self._exactly(target, chunk, fingerprint)
        ]
        taken: list[tuple[Target, Rows, str]] = []
        for each in sorted(found, key=lambda each: each[1].start - each[1].stop):
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
        """Return the targets whose rows are not all committed under a fingerprint."""
        return frozenset(t for t in targets if self.gaps(t, rows, fingerprint))

    def gaps(self, target: Target, rows: Rows, fingerprint: str) -> list[Rows]:
        """Return the rows of a target that are not committed under a fingerprint."""
        found, reached = [], rows.start
        for part in sorted(part for part, _ in self.of(target, rows.chunk, fingerprint)):
            if reached < min(part.start, rows.stop):
                found.append(Rows(rows.chunk, reached, min(part.start, rows.stop)))
            reached = max(reached, part.stop)
        if reached < rows.stop:
            found.append(Rows(rows.chunk, reached, rows.stop))
        return found


class CommitFile:
    """The file that one job appends its commits to."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        path.touch()

    def append(self, commit: Commit) -> None:
        """Append a commit, the whole line or nothing."""
        # Opened each time: `revise`, in another job, may have replaced or removed the file.
        with _lock(self._path.parent, fcntl.LOCK_SH):
            append(self._path, _close_off(self._path) + commit.line().encode())


def revise(folder: Path, revised: Callable[[Commit], Commit]) -> int:
    """Change the commits of a folder, before what they stand for changes.

    Args:
        folder: the folder of the commit files.
        revised: returns a commit as it is to be; a commit without targets is removed.

    Returns:
        The number of commits that stand for less than before.
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
    """Return a commit without the targets that are void."""
    kept = {target: value for target, value in commit.checksums.items() if not void(target)}
    return Commit(commit.rows, commit.fingerprint, kept, commit.sequences, commit.details)


@contextmanager
def _lock(folder: Path, kind: int) -> Iterator[None]:
    """Lock a folder of commit files: shared to append, exclusive to revise."""
    with (folder / ".lock").open("w") as file:
        flock(file, kind, folder)
        yield


def _close_off(path: Path) -> bytes:
    """Return a line break where a kill cut the last line short."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        if not end:
            return b""
        file.seek(end - 1)
        return b"" if file.read(1) == b"\n" else b"\n"


def _read(path: Path) -> tuple[list[Commit], list[str]]:
    """Return the commits of a file, and its lines that are not what was written."""
    commits, damaged = [], []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            commits.append(Commit.parse(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            damaged += [line] if line else []
    return commits, damaged
