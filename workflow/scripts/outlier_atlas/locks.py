"""Locks of the processes that work on a run; the kernel releases them when a process ends.

Snakemake's own locks are files that a killed Snakemake leaves behind, and they do not cover jobs
that outlive it. So each job holds a lock while it runs, and so does the Snakemake that makes the
run. A file system without locks is refused, because two processes could write the same files.
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

from outlier_atlas.phases import WAIT, phase

LOCKS = "locks"
"""Folder of the locks in the run's folder or in `resources`, with one file for each job."""
SNAKEMAKE = "snakemake"
"""Name of the lock of the Snakemake that makes a run."""

ELSEWHERE = (
    "run in a folder of a file system with flock, or mount this one with it (Lustre: `-o flock`; "
    "NFS: without `nolock`)"
)

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


def flock(file: IO[Any], how: int, folder: Path, instead: str = "") -> bool:
    """Lock a file; all locks of this project are taken with this function.

    Args:
        file: the open file.
        how: operation of `fcntl.flock`.
        folder: folder of the file, for the message.
        instead: remedy if the file system has no locks; by default, to take another folder.

    Returns:
        Whether the lock was taken. Without `LOCK_NB` it always is, after its holder released it.

    Raises:
        ValueError: The file system of the folder has no locks.
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
def job_lock(path: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Hold a job's lock inside the block; wait first for another process that holds it.

    Args:
        path: file of the lock.
        say: function that receives a message about the process that the job waits for.
    """
    with _open(path) as file:
        if not flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, path.parent):
            say(f"waiting for {_holder(file)}, which runs this job already")
            with phase(WAIT):
                flock(file, fcntl.LOCK_EX, path.parent)
        _sign(file)
        yield


@contextmanager
def lock_if_free(path: Path) -> Iterator[bool]:
    """Hold a job's lock inside the block, unless another process holds it.

    Yields:
        Whether the lock was free.
    """
    with _open(path) as file:
        free = flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, path.parent)
        if free:
            _sign(file)
        yield free


def take(path: Path, say: Callable[[str], object], whose: str) -> IO[str]:
    """Take a lock, and wait first for another process that holds it.

    Args:
        path: file of the lock.
        say: function that receives the name of the process that holds the lock.
        whose: description of this process, for processes that wait for the lock.

    Returns:
        The open file, which holds the lock until it is closed or the process ends.
    """
    file = _open(path)
    if not flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, path.parent):
        say(_holder(file))
        flock(file, fcntl.LOCK_EX, path.parent)
    _sign(file, whose)
    return file


def own(run: Path, say: Callable[[str], object]) -> IO[str]:
    """Take the lock of the Snakemake that makes a run, and wait for jobs of an earlier Snakemake.

    Jobs that outlived their Snakemake still write files of the run.

    Args:
        run: folder of the run.
        say: function that receives messages about the processes that it waits for.

    Returns:
        The open file, which holds the lock until it is closed or the process ends.

    Raises:
        ValueError: Another Snakemake makes this run, the folder is not writable, or its file system
            has no locks.
    """
    try:
        file = _open(run / LOCKS / SNAKEMAKE)
    except OSError as error:
        raise ValueError(
            f"{error.filename}: {error.strerror}; a run writes there: make it writable, or plan "
            f"the run with `--dry-run`"
        ) from error
    if not flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, run / LOCKS):
        raise ValueError(
            f"{run}: {_holder(file)} is making this run already; wait until that process has "
            f"ended, or end it"
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
                f"waiting for {_holder(file)}: {path.name}, a job of a snakemake that was killed; "
                f"its commits are kept, and ending it loses nothing"
            )
            flock(file, fcntl.LOCK_EX, path.parent)


def is_held(path: Path) -> bool:
    """Return whether a process holds a lock."""
    with _open(path) as file:
        return not flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, path.parent)


def holders(run: Path, jobs: str) -> set[int]:
    """Return the processes of this machine that hold locks of a run's jobs; only on Linux.

    The kernel lists them. Trying to take a lock could delay a job that takes it at the same time.

    Args:
        run: folder of the run.
        jobs: prefix of the names of the locks.
    """
    files = {str(path.stat().st_ino) for path in (run / LOCKS).glob(f"{jobs}*")}
    try:
        listed = Path("/proc/locks").read_text("ascii").splitlines()
    except OSError:
        return set()
    # 1: FLOCK  ADVISORY  WRITE 4242 fd:00:131 0 EOF; a waiting process has `->` before FLOCK
    fields = [line.split() for line in listed]
    return {int(f[4]) for f in fields if f[1] == "FLOCK" and f[5].rpartition(":")[2] in files}


def _open(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8")


def _sign(file: IO[str], whose: str = "") -> None:
    """Write the name of this process into its lock, for processes that wait.

    On a full disk the name is missing, and the lock is held all the same.
    """
    process = f"process {os.getpid()} on {socket.gethostname()}"
    with suppress(OSError):
        os.truncate(file.fileno(), 0)
        os.pwrite(file.fileno(), (f"{process} ({whose})" if whose else process).encode(), 0)


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read(200) or "another process"
