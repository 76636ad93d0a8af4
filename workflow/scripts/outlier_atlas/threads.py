"""Checks for threads that the system refuses to start."""

from __future__ import annotations

import threading

REFUSED = (
    "the system lets this process start too few threads: raise the limit (`ulimit -u`, or the pid "
    "limit of the container or scheduler job), or lower execution.threads or --cores"
)
OF_LIBRARIES = 16
"""Number of threads that libraries start in a job, apart from two for each thread of the job."""


def require(threads: int) -> None:
    """Refuse a job for which the system starts too few threads.

    C libraries end the process if they cannot start a thread, without saying what to do.

    Args:
        threads: number of threads of the job.

    Raises:
        ValueError: The system starts too few threads.
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
    """Return whether an error reports that a thread could not be started."""
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)
