"""Threads that the system refuses to start."""

from __future__ import annotations

REFUSED = (
    "the system lets this process start no more threads: raise the limit (`ulimit -u`; in a "
    "container or a job of a scheduler its limit of pids), or lower execution.threads or --cores"
)


def refused(error: BaseException) -> bool:
    """Whether an error says that a thread could not be started."""
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)
