"""What Snakemake does at a signal: it passes it on to its jobs, and ends when they have stopped.

By itself Snakemake waits at SIGTERM until its jobs have finished, which may take hours, and ends
at Ctrl-C in a stack trace unless it is waiting for jobs just then.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from outlier_atlas import signals, stopping, threads
from outlier_atlas.console import clearing

PATIENCE_SECONDS = 5.0
"""After a second signal, before jobs that are still there are killed."""
POLL_SECONDS = 0.2
AGAIN = "what is committed counts: run the same command again"
STOPPED_STATUS = re.compile(
    r"(?:returned non-zero exit status (?:129|130|143)"
    r"|died with <Signals\.SIG(?:HUP|INT|TERM): \d+>)\.\s*$"
)
"""How Snakemake reports a job that a signal has stopped."""


class _Supervisor:
    """Hears the signals of a Snakemake process.

    Attributes:
        watching: whether it does.
        graceful: Snakemake's own handler of SIGTERM, which starts no more jobs; None before jobs
            begin, and where no hook has told that they do.
        aside: whether the jobs are Snakemake's to stop, on a cluster.
        asked: whether a signal came.
        told: whether the user knows that a job was stopped.
    """

    def __init__(self) -> None:
        self.watching = False
        self.graceful: signals.Handler | None = None
        self.aside = False
        self.asked = False
        self.told = False

    def attend(self, heard: signals.Heard) -> None:
        """In a thread of its own."""
        while (number := heard.next()) is None or self.aside:
            pass
        graceful = self.graceful or _of_snakemake()
        self.asked = self.told = True
        name = signals.name(number)
        if graceful is None:
            _tell(f"stopped by {name} before a job began; {AGAIN}")
            _end(number)
        _tell(f"{name}: stopping after the batch in flight, at once at a second signal; {AGAIN}")
        # Not in the main thread, which may hold the lock that this takes.
        graceful(number, None)
        self._pass_on(heard, number)

    def _pass_on(self, heard: signals.Heard, number: int) -> None:
        """Stop jobs, those too that start just now, until this process has ended by itself."""
        first, deadline = time.monotonic(), None
        stopped: set[int] = set()
        while deadline is None or time.monotonic() < deadline:
            for process in _descendants(os.getpid()):
                if process not in stopped:
                    _send(process, signal.SIGTERM)
                    stopped.add(process)
            again = heard.next(POLL_SECONDS)
            if again is not None and time.monotonic() - first > signals.REPEATED_SECONDS:
                stopped.clear()
                deadline = deadline or time.monotonic() + PATIENCE_SECONDS
        _end(number)

    def keep(self, record: logging.LogRecord) -> bool:
        """A filter of Snakemake's log, for what it says around jobs that a signal has stopped."""
        said = record.getMessage()
        if STOPPED_STATUS.search(said):
            if not self.told:
                self.told = True
                _tell(f"a job was stopped by a signal; {AGAIN}")
            return False
        if not self.asked:
            return True
        return not said.startswith(("Error in rule ", "Will exit after finishing currently"))


_supervisor = _Supervisor()


def watch() -> None:
    """Hear signals from now on; a signal before jobs begin ends Snakemake with one line.

    Only where this process is Snakemake's: a program that uses it as a library has handlers of
    its own.

    Raises:
        SystemExit: too few threads can be started, for Snakemake or for a job.
    """
    program = Path(sys.argv[0])
    mine = "snakemake" in (program.name, program.parent.name)
    main = threading.current_thread() is threading.main_thread()
    if mine and main and not _supervisor.watching:
        _supervisor.watching = True
        os.environ[stopping.SUPERVISED] = "1"
        try:
            # Snakemake ends in a stack trace where it finds too few for itself.
            threads.require(1)
            signals.listen(_supervisor.attend, _ignore)
        except (ValueError, RuntimeError) as error:
            sys.exit(threads.REFUSED if threads.refused(error) else str(error))
        logging.getLogger("snakemake.logging").addFilter(_supervisor.keep)


def jobs_begin(local: bool) -> None:
    """From here on a signal stops the jobs first.

    Args:
        local: whether they run on this machine; elsewhere they are Snakemake's to stop.
    """
    if not _supervisor.watching:
        return
    if not local:
        _supervisor.aside = True
        if signal.getsignal(signal.SIGINT) is _ignore:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if signal.getsignal(signal.SIGHUP) is _ignore:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
        return
    _supervisor.graceful = _of_snakemake() or _supervisor.graceful
    signal.signal(signal.SIGTERM, _ignore)
    signals.block()


def _of_snakemake() -> signals.Handler | None:
    """Snakemake's own handler of SIGTERM, which it installs once it has a scheduler of jobs."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler if callable(handler) and handler is not _ignore else None


def _tell(said: str) -> None:
    def write() -> None:
        with suppress(OSError):  # the terminal may be gone
            os.write(2, f"{clearing(sys.stderr)}{said}\n".encode())

    stopping.try_for(stopping.LAST_SECONDS, write)


def _ignore(_: int, __: FrameType | None) -> None:
    """What is to be done is done in the thread that hears the signal."""


def _end(number: int) -> NoReturn:
    for process in _descendants(os.getpid()):
        _send(process, signal.SIGKILL)
    stopping.leave(signals.status(number))


def _send(process: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)


def _descendants(process: int) -> Iterator[int]:
    """The processes that a process has started, each before those that it has started itself."""
    children: dict[int, list[int]] = defaultdict(list)
    for child, parent in _parents():
        children[parent].append(child)
    waiting = list(children[process])
    while waiting:
        child = waiting.pop(0)
        yield child
        waiting += children[child]


def _parents() -> Iterator[tuple[int, int]]:
    """Every process of this machine with its parent."""
    if Path("/proc/self/stat").exists():
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                # 4242 (a name) S 1 ...; the name may have brackets and spaces in it
                stat = path.read_text("utf-8", errors="replace").rpartition(")")[2].split()
                yield int(path.parent.name), int(stat[1])
        return
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False
    )
    for line in listed.stdout.splitlines():
        child, parent = line.split()
        yield int(child), int(parent)
