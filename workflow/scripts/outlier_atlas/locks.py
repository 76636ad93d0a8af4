"""Which processes work on a run: locks that the kernel releases when a process ends in any way.

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


def take(path: Path, say: Callable[[str], object], whose: str) -> IO[str]:
    """Take a lock, and wait for the process that holds it.

    Args:
        path: of the lock.
        say: is told who holds it.
        whose: the lock is, for those who wait.

    Returns:
        The lock; it is held until it is closed, or the process ends.
    """
    file = _open(path)
    if not flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, path.parent):
        say(_holder(file))
        flock(file, fcntl.LOCK_EX, path.parent)
    _sign(file, whose)
    return file


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


def _sign(file: IO[str], whose: str = "") -> None:
    """For those who wait; on a full disk they wait for somebody without a name."""
    process = f"process {os.getpid()} on {socket.gethostname()}"
    with suppress(OSError):
        os.truncate(file.fileno(), 0)
        os.pwrite(file.fileno(), (f"{process} ({whose})" if whose else process).encode(), 0)


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read(200) or "another process"
