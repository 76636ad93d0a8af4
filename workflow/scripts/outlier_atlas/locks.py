"""Who is at work on a run: locks that the kernel lets go of when a process ends, however it ends.

Snakemake's own locks are files that a killed Snakemake leaves behind, and say nothing about jobs
that outlive it. So each job holds a lock while it is at work, and so does the Snakemake that makes
the run. Where a file system has no locks, nothing is locked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

LOCKS = "locks"
"""Folder of the locks, in the run's folder or in `resources`: a file for each job."""
SNAKEMAKE = "snakemake"
"""The lock of the Snakemake that makes a run."""

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def at_work(path: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Hold a job's lock while the block lasts; waits for the process that holds it.

    Args:
        path: of the lock.
        say: is told for whom the job waits.
    """
    with _open(path) as file:
        if not _taken(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
            say(f"waiting for {_holder(file)}, which an earlier snakemake left at this very job")
            _taken(file, fcntl.LOCK_EX)
        _sign(file)
        yield


def take(path: Path, say: Callable[[str], object], whose: str) -> IO[str]:
    """Take a lock, and wait for whoever holds it.

    Args:
        path: of the lock.
        say: is told who holds it.
        whose: the lock is, for those who wait.

    Returns:
        The lock; it is held until it is closed, or the process ends.
    """
    file = _open(path)
    if not _taken(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
        say(_holder(file))
        _taken(file, fcntl.LOCK_EX)
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
        ValueError: another Snakemake makes this run, or nobody can: its folder takes no file.
    """
    try:
        file = _open(run / LOCKS / SNAKEMAKE)
    except OSError as error:
        raise ValueError(
            f"{error.filename}: {error.strerror}; a run writes there: make that possible, or "
            f"`--dry-run` shows what there would be to do"
        ) from error
    if not _taken(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
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
        if not _taken(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
            say(
                f"waiting for {_holder(file)}: {path.name}, left at work by a snakemake that was "
                f"killed; what it commits counts, and to end it loses nothing"
            )
            _taken(file, fcntl.LOCK_EX)


def is_held(path: Path) -> bool:
    """Whether a process holds a lock."""
    with _open(path) as file:
        return not _taken(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


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


def _taken(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
    return True


def _sign(file: IO[str], whose: str = "") -> None:
    """For those who wait; on a full disk they wait for somebody without a name."""
    process = f"process {os.getpid()} on {socket.gethostname()}"
    with suppress(OSError):
        os.truncate(file.fileno(), 0)
        os.pwrite(file.fileno(), (f"{process} ({whose})" if whose else process).encode(), 0)


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read(200) or "another process"
