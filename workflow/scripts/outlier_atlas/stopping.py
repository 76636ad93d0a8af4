"""Stopping of a job at a signal: after the batch in flight, or at once.

The first signal raises `Stopped` in the main thread; inside a `deferred` block, it waits until the
block checks for it or ends. A second signal ends the process. The process also ends if `Stopped`
has no effect, because a library catches it or computes for minutes before it is raised. In all
cases a job loses no more than after SIGKILL, and prints no stack trace.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from outlier_atlas import signals

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 3.0
"""Seconds until a job that is not deferred is ended, if it has not ended by itself."""
LAST_SECONDS = 1.0
"""Maximum time in seconds for the last line of a job."""
SUPERVISED = "OUTLIER_ATLAS_SUPERVISED"
"""Environment variable of jobs whose Snakemake reports to the user that they were stopped."""


class Stopped(BaseException):
    """A request to stop the job, raised after a signal.

    Attributes:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signals.name(number))
        self.number = number


class _Request:
    """The state of the request to stop this process.

    Attributes:
        number: number of the first signal; None before it.
        first: time of the first signal.
        due: time from which the process should end; None while the request is deferred.
        deferred: number of open `deferred` blocks.
        raised: whether `Stopped` was raised, which happens once.
        over: whether the job has ended, so that requests have no effect.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.first = 0.0
        self.due: float | None = None
        self.deferred = 0
        self.raised = False
        self.over = False

    def register(self, number: int) -> bool:
        """Register a signal and return whether it is a second request."""
        now = time.monotonic()
        if self.number is not None:
            return now - self.first > signals.REPEATED_SECONDS
        self.first = now
        self.due = None if self.deferred else now
        self.number = number
        return False


_request = _Request()


def listen() -> None:
    """Let signals stop this job from now on, including those that came while they were blocked.

    Raises:
        Stopped: Here or at any later point of the main thread, until `finish` is called.
        RuntimeError: The thread that hears signals cannot be started.
    """
    signals.listen(_attend, _handle)


def finish() -> None:
    """Ignore signals from now on, because the job is about to end by itself."""
    _request.over = True


def raise_again() -> None:
    """Raise `Stopped` again if it was raised before: a later error is only its consequence."""
    if _request.raised and _request.number is not None:
        raise Stopped(_request.number)


@contextmanager
def deferred() -> Iterator[None]:
    """Defer a signal until the block ends, or calls `raise_if_asked`.

    Raises:
        Stopped: A signal came, and the block raised no other exception.
    """
    _request.deferred += 1
    try:
        yield
    finally:
        _request.deferred -= 1
        if _request.number is not None and not _request.deferred:
            _request.due = time.monotonic()
    raise_if_asked()


def raise_if_asked() -> None:
    """Raise `Stopped` if a signal came."""
    if _request.number is not None and not _request.raised:
        _raise()


def end(number: int) -> NoReturn:
    """End the process with one line.

    Python's regular exit would wait for threads and might print stack traces.
    """
    message = "stopped by %s; committed results are kept: run the same command again"
    level = logging.DEBUG if os.environ.get(SUPERVISED) else logging.WARNING
    leave(signals.status(number), lambda: log.log(level, message, signals.name(number)))


def leave(status: int, say: Callable[[], object] = lambda: None) -> NoReturn:
    """End the process immediately after a last message and after its streams are flushed."""

    def last() -> None:
        say()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()

    try_for(LAST_SECONDS, last)
    os._exit(status)


def try_for(seconds: float, do: Callable[[], object]) -> None:
    """Call a function in another thread, and return after some seconds in any case.

    Writing to a terminal or a pipe that is stopped or full would wait forever.
    """
    thread = threading.Thread(target=do, daemon=True)
    with suppress(RuntimeError):  # the system may refuse another thread
        thread.start()
        thread.join(seconds)


def _handle(number: int, _: FrameType | None) -> None:
    """Handle a signal in the main thread, between two of its bytecode instructions."""
    if not _request.over and not _request.raised:
        _request.register(number)
        if not _request.deferred:
            _raise()


def _raise() -> None:
    assert _request.number is not None
    _request.raised = True
    # Interrupted destructors, callbacks and threads that wait for the main one may report errors.
    sys.unraisablehook = lambda _: None
    threading.excepthook = lambda _: None
    raise Stopped(_request.number)


def _attend(heard: signals.Heard) -> None:
    """End the process at a second signal or after `PATIENCE_SECONDS`; runs in its own thread."""
    while True:
        number = heard.next(None if _request.number is None else 0.1)
        if _request.over:
            continue
        if number is not None and _request.register(number):
            end(number)
        due = _request.due
        if due is not None and time.monotonic() - due > PATIENCE_SECONDS:
            assert _request.number is not None
            end(_request.number)
