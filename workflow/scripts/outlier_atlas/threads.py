"""Threads that the system refuses to start."""

from __future__ import annotations

import threading

REFUSED = (
    "the system lets this process start too few threads: raise the limit (`ulimit -u`; in a "
    "container or a job of a scheduler its limit of pids), or lower execution.threads or --cores"
)
OF_LIBRARIES = 16
"""Threads that libraries start in a job, in addition to two pools of the job's own size."""


def require(threads: int) -> None:
    """Refuse a job for which the system starts too few threads.

    Libraries in C end the process where they cannot start a thread, without a word on what to do.

    Args:
        threads: of the job.

    Raises:
        ValueError: it does.
    """
    done = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(2 * threads + OF_LIBRARIES):
            thread = threading.Thread(target=done.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(REFUSED) from error
    finally:
        done.set()
        for thread in started:
            thread.join()


def refused(error: BaseException) -> bool:
    """Whether an error says that a thread could not be started."""
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)
