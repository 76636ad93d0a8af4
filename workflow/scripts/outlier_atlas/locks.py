"""Who is at work on a run: locks that the kernel lets go of when a process ends, however it ends.

Snakemake's own locks are files that a killed Snakemake leaves behind, and say nothing about jobs
that outlive it. So each job holds a lock while it is at work, and so does the Snakemake that makes
the run. A file system without locks is refused: two processes would write the same files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

LOCKS = "locks"
"""Folder of the locks, in the run's folder or in `resources`: a file for each job."""
SNAKEMAKE = "snakemake"
"""The lock of the Snakemake that makes a run."""

ELSEWHERE = (
    "run in a folder of a file system with flock, or mount this one with it (Lustre: `-o flock`; "
    "NFS: without `nolock`)"
)

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


def flock(file: IO[Any], how: int, folder: Path, instead: str = "") -> bool:
    """Lock a file, as all locks of this project are taken.

    Args:
        how: as `fcntl.flock` takes it.
        folder: that the file is in, for the error.
        instead: what to do where it has no locks; by default, to take another folder.

    Returns:
        Whether the lock was taken; without `LOCK_NB` it is, once its holder has let go.

    Raises:
        ValueError: the folder's file system has no locks.
    """
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        raise ValueError(
            f"{folder}: files on this file system cannot be locked (flock: {error.strerror}), so "
            f"two processes might write the same file; {instead or ELSEWHERE}"
        ) from error
    return True


@contextmanager
def at_work(path: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Hold a job's lock while the block lasts; waits for the process that holds it.

    Args:
        path: of the lock.
        say: is told for whom the job waits.
    """
    with _open(path) as file:
        if not flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, path.parent):
            say(f"waiting for {_holder(file)}, which an earlier snakemake left at this very job")
            flock(file, fcntl.LOCK_EX, path.parent)
        _sign(file)
        yield


def own(run: Path, say: Callable[[str], object]) -> IO[str]:
    """Take the lock of the Snakemake that makes a run, and wait for jobs that outlived an earlier
    one: they still write.

    Args:
        run: folder of the run.
        say: is told for whom it waits.

    Returns:
        The lock; it is held until it is closed, or the process ends.

    Raises:
        ValueError: another Snakemake makes this run, or none can: its folder takes no file, or has
            no locks.
    """
    try:
        file = _open(run / LOCKS / SNAKEMAKE)
    except OSError as error:
        raise ValueError(
            f"{error.filename}: {error.strerror}; a run writes there: make that possible, or "
            f"`--dry-run` shows what there would be to do"
        ) from error
    if not flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, run / LOCKS):
        raise ValueError(
            f"{run}: {_holder(file)} is making this run already, so this one does not start; wait "
            f"until that one has ended, or end it"
        )
    _sign(file)
    for path in sorted((run / LOCKS).iterdir()):
        if path.name != SNAKEMAKE:
            _wait_for(path, say)
    return file


def drop_stale_locks(run: Path, folder: Path = Path(".snakemake/locks")) -> None:
    """Remove the lock files that a killed Snakemake left, as `snakemake --unlock` does.

    Whoever owns the run knows that nobody else makes it: what names its files is left over. What
    names files under `resources` may be of another run, unless none is being made.

    Args:
        run: that this process owns.
        folder: of Snakemake's lock files: each names files, one a line.
    """
    others = (p for p in run.parent.glob(f"*/{LOCKS}/{SNAKEMAKE}") if p.parents[1] != run)
    ours = [f"{run}/"] if any(is_held(path) for path in others) else [f"{run}/", "resources/"]
    for path in folder.glob("*.lock"):
        named = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if any(name.startswith(tuple(ours)) for name in named):
            path.unlink(missing_ok=True)


def _wait_for(path: Path, say: Callable[[str], object]) -> None:
    with _open(path) as file:
        if not flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, path.parent):
            say(
                f"waiting for {_holder(file)}: {path.name}, left at work by a snakemake that was "
                f"killed; what it commits counts, and to end it loses nothing"
            )
            flock(file, fcntl.LOCK_EX, path.parent)


def is_held(path: Path) -> bool:
    """Whether a process holds a lock."""
    with _open(path) as file:
        return not flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, path.parent)


def holders(run: Path, jobs: str) -> set[int]:
    """The processes of this machine that hold locks of a run's jobs; none off Linux.

    The kernel lists them: to try a lock would be in the way of a job that takes it just then.

    Args:
        jobs: how the names of their locks begin.
    """
    files = {str(path.stat().st_ino) for path in (run / LOCKS).glob(f"{jobs}*")}
    try:
        listed = Path("/proc/locks").read_text("ascii").splitlines()
    except OSError:
        return set()
    # 1: FLOCK  ADVISORY  WRITE 4242 fd:00:131 0 EOF; where one waits, `->` stands before FLOCK
    fields = [line.split() for line in listed]
    return {int(f[4]) for f in fields if f[1] == "FLOCK" and f[5].rpartition(":")[2] in files}


def _open(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8")


def _sign(file: IO[str]) -> None:
    """For those who wait; on a full disk they wait for somebody without a name."""
    with suppress(OSError):
        os.truncate(file.fileno(), 0)
        os.pwrite(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read(200) or "another process"
