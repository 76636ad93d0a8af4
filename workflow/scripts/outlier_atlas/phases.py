"""Seconds that a process spends in each phase of its work.

The phases of the main thread are exclusive: a phase inside another one is not counted twice, so
their seconds add up to the time of the process. Seconds of other threads are summed separately,
because these threads work while the main thread does.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import ContextDecorator
from pathlib import Path
from types import TracebackType
from typing import Any

IMPORT, LOAD, WAIT, COMPUTE = "import", "load", "wait", "compute"
COPY, ENCODE, WRITE, OTHER = "copy", "encode", "write", "other"

PHASES = (IMPORT, LOAD, WAIT, COMPUTE, COPY, ENCODE, WRITE, OTHER)
"""All phases, in the order of tables and figures."""

OF_THREADS = (LOAD, COMPUTE, COPY, ENCODE, WRITE)
"""Phases in which threads other than the main thread work."""


class _Thread(threading.local):
    """The phases that the calling thread is in, the innermost last, and the time of a change."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.since = 0.0


class Clock:
    """Seconds by phase, of the main thread and of all other threads.

    Attributes:
        main: seconds of the main thread.
        threads: seconds of the other threads, summed.
        facts: facts about the work of the process, by name.
    """

    def __init__(self) -> None:
        self.main = dict.fromkeys(PHASES, 0.0)
        self.threads = dict.fromkeys(PHASES, 0.0)
        self.facts: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._thread = _Thread()
        self._main_thread = threading.get_ident()

    def begin(self, imported: float) -> None:
        """Start to count the main thread, in the phase `other`.

        Args:
            imported: seconds from the start of the process until now.
        """
        self.main = dict.fromkeys(PHASES, 0.0) | {IMPORT: imported}
        self.threads = dict.fromkeys(PHASES, 0.0)
        self.facts = {}
        self._main_thread = threading.get_ident()
        self._thread.names, self._thread.since = [OTHER], time.perf_counter()

    def enter(self, name: str) -> None:
        """Begin a phase of the calling thread."""
        self._count()
        self._thread.names.append(name)

    def leave(self) -> None:
        """End the innermost phase of the calling thread."""
        self._count()
        self._thread.names.pop()

    def current(self) -> str | None:
        """Return the innermost phase of the calling thread."""
        return self._thread.names[-1] if self._thread.names else None

    def is_main(self) -> bool:
        """Return whether the calling thread is the main thread."""
        return threading.get_ident() == self._main_thread

    def count(self, numbers: Mapping[str, float]) -> None:
        """Add numbers to facts."""
        with self._lock:
            for name, number in numbers.items():
                self.facts[name] = self.facts.get(name, 0) + number

    def so_far(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the seconds of the main thread and of the others, called in the main thread."""
        self._count()
        return dict(self.main), dict(self.threads)

    def _count(self) -> None:
        """Add the time since the last change to the innermost phase."""
        thread, now = self._thread, time.perf_counter()
        if thread.names:
            seconds = now - thread.since
            if self.is_main():
                self.main[thread.names[-1]] += seconds
            else:
                with self._lock:
                    self.threads[thread.names[-1]] += seconds
        thread.since = now


CLOCK = Clock()
"""The clock of this process."""


class phase(ContextDecorator):  # noqa: N801  used like a function
    """Count the time of a `with` block or a function to a phase, without phases inside it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        CLOCK.enter(self._name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        CLOCK.leave()


def note(**facts: Any) -> None:
    """Record facts about the work of the process."""
    CLOCK.facts |= facts


def count(**numbers: float) -> None:
    """Add numbers to facts about the work of the process; any thread may call this."""
    CLOCK.count(numbers)


STARTED = "OUTLIER_ATLAS_STARTED"
"""Environment variable of a forked job: when the process was started that it runs for, in seconds
since the machine was started."""


def process_seconds() -> float:
    """Return the seconds since this job was started, at least the CPU time of its process."""
    used = time.process_time()
    if STARTED in os.environ:
        return max(used, time.clock_gettime(time.CLOCK_BOOTTIME) - float(os.environ[STARTED]))
    try:
        # The name of the process, in brackets, may contain spaces.
        fields = Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(used, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, IndexError, AttributeError):
        return used
