"""Signals that ask a process to stop, received in a separate thread.

Python runs a signal handler in the main thread, between two bytecode instructions, so it does not
run while the main thread computes in a library or waits. The number of a signal is also written to
a pipe as soon as the signal arrives at any thread, and a separate thread reads that pipe.
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
"""Seconds after the first signal within which another signal is the same request.

Ctrl-C reaches a job twice: from the terminal, and from Snakemake, which passes its signals on.
"""

Handler = Callable[[int, FrameType | None], object]


class Heard:
    """The queue of signals that have arrived, in order."""

    def __init__(self, reading: int) -> None:
        self._reading = reading

    def next(self, timeout: float | None = None) -> int | None:
        """Wait for the next signal that asks to stop; return None after the timeout.

        Args:
            timeout: timeout in seconds; None waits forever.
        """
        while select.select([self._reading], [], [], timeout)[0]:
            number = os.read(self._reading, 1)[0]
            if number in ASK_TO_STOP:
                return number
        return None


def listen(attend: Callable[[Heard], None], handler: Handler) -> None:
    """Run `attend` in a thread, and from now on `handler` at each signal that asks to stop.

    Signals that this process ignores stay ignored, such as SIGHUP under `nohup`. Blocked signals
    are unblocked. The function must be called in the main thread.

    Raises:
        RuntimeError: The thread cannot be started.
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
    """Block signals that ask to stop in this thread, so that other threads receive them.

    Threads started by this one, and the programs that they start, inherit the block. A job that is
    asked to stop before it listens therefore stops as soon as it listens.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ASK_TO_STOP)


def name(number: int) -> str:
    """Return the name of a signal, such as SIGTERM."""
    return signal.Signals(number).name


def status(number: int) -> int:
    """Return the exit status of a process that a signal has stopped, by the rule of shells."""
    return 128 + number
