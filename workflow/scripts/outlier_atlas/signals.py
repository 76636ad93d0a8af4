"""Signals that ask a process to stop, heard in a thread of their own.

Python runs a signal's handler in the main thread, between two steps of Python code: while the main
thread computes in a library or waits, nothing happens. The number of a signal is also written to a
pipe as soon as the signal comes, by whatever thread it comes to. A thread of ours reads that pipe.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable
from types import FrameType

ASK_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REPEATED_SECONDS = 1.0
"""Signals that come so soon after the first one are the same request. Ctrl-C reaches a job twice:
from the terminal, and from Snakemake, which passes on what it gets."""

Handler = Callable[[int, FrameType | None], object]


class Heard:
    """The signals that have come, in their order."""

    def __init__(self, reading: int) -> None:
        self._reading = reading

    def next(self, timeout: float | None = None) -> int | None:
        """Wait for the next signal that asks to stop; None if none comes in time.

        Args:
            timeout: in seconds; None waits for ever.
        """
        while select.select([self._reading], [], [], timeout)[0]:
            number = os.read(self._reading, 1)[0]
            if number in ASK_TO_STOP:
                return number
        return None


def listen(attend: Callable[[Heard], None], handler: Handler) -> None:
    """Run `attend` in a thread, and from now on `handler` at each signal that asks to stop.

    A signal that this process ignores stays ignored, such as SIGHUP under `nohup`. Signals that
    are blocked no longer are. To be called in the main thread.

    Raises:
        RuntimeError: the thread cannot be started.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=attend, args=(Heard(reading),), name="signals", daemon=True).start()
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in ASK_TO_STOP:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASK_TO_STOP)


def block() -> None:
    """Let signals that ask to stop go to the other threads.

    Threads that the calling one starts, and the programs that they start, have these signals
    blocked: a job that is told to stop before it listens, stops as soon as it does.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ASK_TO_STOP)


def name(number: int) -> str:
    """The name of a signal, such as SIGTERM."""
    return signal.Signals(number).name


def status(number: int) -> int:
    """The exit status of a process that a signal has stopped, as shells count."""
    return 128 + number
