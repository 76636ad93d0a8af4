"""Signal handling of Snakemake: pass a signal on to the jobs, and end when they have stopped.

Without this module, Snakemake waits at SIGTERM until its jobs have finished, which may take hours.
At Ctrl-C it ends in a stack trace, unless it is just waiting for jobs.
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
"""Seconds after a second signal until the remaining jobs are killed."""
POLL_SECONDS = 0.2
AGAIN = "committed results are kept: run the same command again"
STOPPED_STATUS = re.compile(
    r"(?:returned non-zero exit status (?:129|130|143)"
    r"|died with <Signals\.SIG(?:HUP|INT|TERM): \d+>)\.\s*$"
)
"""Message in which Snakemake reports a job that a signal has stopped."""


class _Supervisor:
    """A handler for the signals of a Snakemake process.

    Attributes:
        watching: whether the supervisor is active.
        graceful: Snakemake's own handler of SIGTERM, which starts no more jobs; None before the
            first job, or if no hook has reported that jobs begin.
        inactive: whether Snakemake itself stops the jobs, as on a cluster.
        signalled: whether a signal came.
        announced: whether the user was told that a job was stopped.
    """

    def __init__(self) -> None:
        self.watching = False
        self.graceful: signals.Handler | None = None
        self.inactive = False
        self.signalled = False
        self.announced = False

    def attend(self, heard: signals.Heard) -> None:
        """Wait for a signal and stop the jobs; runs in its own thread."""
        while (number := heard.next()) is None or self.inactive:
            pass
        graceful = self.graceful or _snakemake_handler()
        self.signalled = self.announced = True
        name = signals.name(number)
        if graceful is None:
            _print_line(f"stopped by {name} before a job began; {AGAIN}")
            _end(number)
        _print_line(
            f"{name}: stopping after the batch in flight; a second signal stops at once; {AGAIN}"
        )
        # Not in the main thread, which may hold the lock that the handler takes.
        graceful(number, None)
        self._pass_on(heard, number)

    def _pass_on(self, heard: signals.Heard, number: int) -> None:
        """Stop running and starting jobs until this process ends by itself."""
        first, deadline = time.monotonic(), None
        stopped: set[int] = set()
        while deadline is None or time.monotonic() < deadline:
            for process in _descendants(os.getpid()):
                if process not in stopped:
                    _send(process, signal.SIGTERM)
                    stopped.add(process)
            repeated = heard.next(POLL_SECONDS)
            if repeated is not None and time.monotonic() - first > signals.REPEATED_SECONDS:
                stopped.clear()
                deadline = deadline or time.monotonic() + PATIENCE_SECONDS
        _end(number)

    def keep(self, record: logging.LogRecord) -> bool:
        """Filter Snakemake's log: drop its messages about jobs that a signal has stopped."""
        message = record.getMessage()
        if STOPPED_STATUS.search(message):
            if not self.announced:
                self.announced = True
                _print_line(f"a job was stopped by a signal; {AGAIN}")
            return False
        if not self.signalled:
            return True
        return not message.startswith(("Error in rule ", "Will exit after finishing currently"))


_supervisor = _Supervisor()


def watch() -> None:
    """Handle signals from now on; a signal before the first job ends Snakemake with one line.

    This has no effect in a program that uses Snakemake as a library, because such a program has
    its own signal handlers.

    Raises:
        SystemExit: Too few threads can be started for Snakemake or for a job.
    """
    program = Path(sys.argv[0])
    is_snakemake = "snakemake" in (program.name, program.parent.name)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if is_snakemake and in_main_thread and not _supervisor.watching:
        _supervisor.watching = True
        os.environ[stopping.SUPERVISED] = "1"
        try:
            # Snakemake ends in a stack trace if it cannot start its own threads.
            threads.require(1)
            signals.listen(_supervisor.attend, _ignore)
        except (ValueError, RuntimeError) as error:
            sys.exit(threads.REFUSED if threads.refused(error) else str(error))
        logging.getLogger("snakemake.logging").addFilter(_supervisor.keep)


def jobs_begin(local: bool) -> None:
    """Let a signal stop the jobs first, from now on.

    Args:
        local: whether the jobs run on this machine; Snakemake itself stops jobs elsewhere.
    """
    if not _supervisor.watching:
        return
    if not local:
        _supervisor.inactive = True
        if signal.getsignal(signal.SIGINT) is _ignore:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if signal.getsignal(signal.SIGHUP) is _ignore:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
        return
    _supervisor.graceful = _snakemake_handler() or _supervisor.graceful
    signal.signal(signal.SIGTERM, _ignore)
    signals.block()


def _snakemake_handler() -> signals.Handler | None:
    """Return Snakemake's own handler of SIGTERM, which it installs with its job scheduler."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler if callable(handler) and handler is not _ignore else None


def _print_line(line: str) -> None:
    def write() -> None:
        with suppress(OSError):  # the terminal may be gone
            os.write(2, f"{clearing(sys.stderr)}{line}\n".encode())

    stopping.try_for(stopping.LAST_SECONDS, write)


def _ignore(_: int, __: FrameType | None) -> None:
    """Do nothing: the thread that hears the signal acts on it."""


def _end(number: int) -> NoReturn:
    for process in _descendants(os.getpid()):
        _send(process, signal.SIGKILL)
    stopping.leave(signals.status(number))


def _send(process: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)


def _descendants(process: int) -> Iterator[int]:
    """Yield the descendants of a process, each before its own children."""
    children: dict[int, list[int]] = defaultdict(list)
    for child, parent in _parents():
        children[parent].append(child)
    pending = list(children[process])
    while pending:
        child = pending.pop(0)
        yield child
        pending += children[child]


def _parents() -> Iterator[tuple[int, int]]:
    """Yield (process, parent) for every process of this machine."""
    if Path("/proc/self/stat").exists():
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                # 4242 (a name) S 1 ...; the name may contain brackets and spaces
                stat = path.read_text("utf-8", errors="replace").rpartition(")")[2].split()
                yield int(path.parent.name), int(stat[1])
        return
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False
    )
    for line in listed.stdout.splitlines():
        child, parent = line.split()
        yield int(child), int(parent)
