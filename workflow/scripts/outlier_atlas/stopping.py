"""How a job stops at a signal: after the batch in flight, or at once.

The first signal raises `Stopped` in the main thread, in whatever the job does; inside a `deferred`
block, it waits until the block asks or ends. A second signal ends the process. So does `Stopped`
where it has no effect: a library may swallow it, or compute for minutes before it is raised.
Either way a job loses no more than by SIGKILL, and leaves no trace of Python on the terminal.
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
"""After which a job that was not deferred ends, if it has not come to its end by itself."""
LAST_SECONDS = 1.0
"""For the line that a job ends with."""
SUPERVISED = "OUTLIER_ATLAS_SUPERVISED"
"""Environment variable of jobs whose Snakemake tells the user that they were stopped."""


class Stopped(BaseException):
    """A signal has asked the job to stop.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signals.name(number))
        self.number = number


class _Request:
    """What was asked of this process, and how far it has come.

    Attributes:
        number: the first signal; None before it.
        first: when it came.
        due: from when on the process should end; None while it is deferred.
        deferred: how many `deferred` blocks are open.
        raised: whether `Stopped` was raised; it is, once.
        over: whether the job has come to its end, whatever is asked now.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.first = 0.0
        self.due: float | None = None
        self.deferred = 0
        self.raised = False
        self.over = False

    def come(self, number: int) -> bool:
        """Note a signal; whether it is a second request."""
        now = time.monotonic()
        if self.number is not None:
            return now - self.first > signals.REPEATED_SECONDS
        self.first = now
        self.due = None if self.deferred else now
        self.number = number
        return False


_request = _Request()


def listen() -> None:
    """Have signals stop this job from now on, those included that came while they were blocked.

    Raises:
        Stopped: here or at any later place of the main thread, until `finish` is called.
        RuntimeError: no thread can be started to hear them.
    """
    signals.listen(_attend, _handle)


def finish() -> None:
    """From here on the job ends by itself: a signal changes nothing."""
    _request.over = True


def raise_again() -> None:
    """Raise `Stopped` if it was raised before: an error that came after it is of cut off work."""
    if _request.raised and _request.number is not None:
        raise Stopped(_request.number)


@contextmanager
def deferred() -> Iterator[None]:
    """Let a signal wait until the block ends, or asks with `raise_if_asked`.

    Raises:
        Stopped: a signal came, and nothing else was raised in the block.
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
    """End the process without Python's own end, which waits for threads and may show traces."""
    told = "stopped by %s; what is committed counts: run the same command again"
    level = logging.DEBUG if os.environ.get(SUPERVISED) else logging.WARNING
    leave(signals.status(number), lambda: log.log(level, told, signals.name(number)))


def leave(status: int, say: Callable[[], object] = lambda: None) -> NoReturn:
    """End the process as it is, once it has said its last and its streams are out."""

    def last() -> None:
        say()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()

    try_for(LAST_SECONDS, last)
    os._exit(status)


def try_for(seconds: float, do: Callable[[], object]) -> None:
    """Do something in another thread, and go on after so many seconds in any case.

    What a terminal or a pipe does not take, because it is stopped or full, would wait for ever.
    """
    thread = threading.Thread(target=do, daemon=True)
    with suppress(RuntimeError):  # there may be no more threads
        thread.start()
        thread.join(seconds)


def _handle(number: int, _: FrameType | None) -> None:
    """In the main thread, between two steps of what it does."""
    if not _request.over and not _request.raised:
        _request.come(number)
        if not _request.deferred:
            _raise()


def _raise() -> None:
    assert _request.number is not None
    _request.raised = True
    # What it cuts off may complain: destructors, callbacks, threads that wait for the main one.
    sys.unraisablehook = lambda _: None
    threading.excepthook = lambda _: None
    raise Stopped(_request.number)


def _attend(heard: signals.Heard) -> None:
    """In a thread of its own: a second signal, and patience that ends, end the process."""
    while True:
        number = heard.next(None if _request.number is None else 0.1)
        if _request.over:
            continue
        if number is not None and _request.come(number):
            end(number)
        due = _request.due
        if due is not None and time.monotonic() - due > PATIENCE_SECONDS:
            assert _request.number is not None
            end(_request.number)
