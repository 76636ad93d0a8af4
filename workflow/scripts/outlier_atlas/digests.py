"""Content digests of a user's files, recomputed only if a file may have changed.

A file is considered unchanged if its size, its two times and its inode are those of the last
reading. Only the kernel sets the change time (ctime), so it differs even after a copy that keeps
the modification time, or an edit that restores it.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from outlier_atlas.files import DamagedFileError, read_record, sha256, write_record

NOT_READABLE = "not readable"
"""Digest of a file that is missing, not a regular file, or not readable."""

SETTLED_NS = 2 * 10**9
"""Nanoseconds for which a file must be unchanged before its digest is cached.

Two changes within one tick of a file system's clock have the same time. FAT has ticks of two
seconds.
"""

Stamp = list[int]
"""Size, mtime and ctime in nanoseconds, and inode."""


class Digests:
    """A cache of the sha256 of the files of one model or dataset.

    Args:
        cache: file that stores the digests between processes; None caches them in memory only.
        keep: whether the cache file may be written; a dry run only reads it.
    """

    def __init__(self, cache: Path | None = None, keep: bool = True) -> None:
        self._cache = cache
        self._keep = keep and cache is not None
        self._known: dict[str, tuple[Stamp, str]] = {}
        self._loaded = False

    def of(self, files: Mapping[str, Path]) -> dict[str, str]:
        """Return the digest of each file, or `NOT_READABLE`; changed files are read in parallel.

        Args:
            files: the files, by their names in the cache.
        """
        self._load()
        stamps = {name: _stamp(path) for name, path in files.items()}
        changed = [
            name
            for name, stamp in stamps.items()
            if stamp is not None and not self._is_known(name, stamp)
        ]
        if changed:
            with ThreadPoolExecutor() as threads:
                digests = threads.map(_digest, [files[name] for name in changed])
                read = dict(zip(changed, digests, strict=True))
            now = time.time_ns()
            for name, digest in read.items():
                stamp = stamps[name]
                # The digest of a file that changed while it was read is not cached.
                if stamp is not None and stamp == _stamp(files[name]):
                    self._known[name] = stamp, digest
            self._store(changed, now)
        else:
            read = {}
        return {
            name: NOT_READABLE if stamp is None else read.get(name) or self._known[name][1]
            for name, stamp in stamps.items()
        }

    def clear(self) -> None:
        """Forget all digests, also on disk, so that every file is read again."""
        self._known.clear()
        if self._cache is not None:
            self._cache.unlink(missing_ok=True)

    def _is_known(self, name: str, stamp: Stamp) -> bool:
        return name in self._known and self._known[name][0] == stamp

    def _load(self) -> None:
        if self._loaded or self._cache is None:
            return
        self._loaded = True
        try:
            entries = read_record(self._cache)["files"]
            self._known = {name: (entry[:4], entry[4]) for name, entry in entries.items()}
        except (OSError, DamagedFileError, KeyError):
            self._known = {}

    def _store(self, changed: Iterable[str], now: int) -> None:
        if not self._keep or self._cache is None:
            return
        settled = {
            name: [*stamp, digest]
            for name, (stamp, digest) in self._known.items()
            if now - max(stamp[1:3]) > SETTLED_NS
        }
        if not settled.keys().isdisjoint(changed):
            write_record(self._cache, {"files": settled})


def _stamp(path: Path) -> Stamp | None:
    """Return the stamp of a regular file, or None: reading a FIFO would wait for its writer."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except OSError:
        return NOT_READABLE
