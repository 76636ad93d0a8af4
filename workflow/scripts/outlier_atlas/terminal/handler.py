"""Snakemake's log as stages on a terminal."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from outlier_atlas.compat import snakemake_internals
from outlier_atlas.terminal.names import NAME, REASON
from outlier_atlas.terminal.reasons import Known
from outlier_atlas.terminal.screen import Screen
from outlier_atlas.terminal.stages import Stages

TICK_SECONDS = 1.0
LINE_SECONDS = 60.0
"""Between two lines of progress where they cannot be drawn over each other."""

NOISE = (
    "Assuming unrestricted shared filesystem usage",
    "Building DAG of jobs",
    "Using shell: ",
    "Conda environments: ignored",
    "Singularity containers: ignored",
    "Select jobs to execute",
    "Reasons:\n",
    "Elapsed time: ",
    "Shutting down, this might take some time",
    "Removing output files of failed job",
)  # fmt: skip
"""How messages of Snakemake begin that say nothing about the run; what is new is shown."""

AFTER_FAILURE = (
    "Exiting because a job execution failed",
    "WorkflowError:\nAt least one job did not complete successfully",
)  # fmt: skip
"""The same, of messages behind a job whose failure was shown."""

SHOWN_OTHERWISE = frozenset(
    {
        LogEvent.WORKFLOW_STARTED, LogEvent.SHELLCMD, LogEvent.JOB_STARTED, LogEvent.GROUP_INFO,
        LogEvent.RESOURCES_INFO, LogEvent.DEBUG_DAG, LogEvent.RULEGRAPH,
    }
)  # fmt: skip

SCRIPT_FAILED = re.compile(r"\.snakemake/scripts/.*returned non-zero exit status 1\.\s*$", re.S)
"""What Snakemake says of a script that has told in a line what went wrong."""
SCRIPT_DIED = re.compile(r"\.snakemake/scripts/.*died with <Signals\.(SIG\w+): \d+>\.\s*$", re.S)


class StageHandler(LogHandlerBase):
    """Shows stages; a logger plugin in all but its installation.

    Args:
        settings: Snakemake's output settings.
        workflow: Snakemake's own object.
        known: returns the reason that the record of a rule's inputs gives.
        default: Snakemake's handler, whose stream, filter and formatter this one takes.
    """

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def __init__(self, settings: Any, workflow: Any, known: Known, default: Any) -> None:
        super().__init__(settings, None)
        self.name = NAME
        self.filters = list(default.filters)
        self.formatter = default.formatter
        self._screen = Screen(default.stream)
        self._workflow = workflow
        self._known = [known]
        self._stages = Stages()
        self._planned = self._failed = False
        self._died = ""
        self._quiet = {choice.name for choice in settings.quiet or ()}
        self._said = time.monotonic()
        self._ticks: threading.Thread | None = None
        self._closed = threading.Event()

    def also_known(self, known: Known) -> None:
        """Take reasons of another module, too."""
        self._known.append(known)

    def _reason(self, file: str, newer: bool) -> str | None:
        return next(filter(None, (known(file, newer) for known in self._known)), None)

    def emit(self, record: logging.LogRecord) -> None:
        """Write what a record says to the user."""
        try:
            lines = list(self._lines(record))
            for line in lines:
                self._screen.line(line)
            if lines and self._ticks is not None:
                self._screen.progress(self._stages.progress())
        except BrokenPipeError:
            raise
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """End the line of progress."""
        self._closed.set()
        with suppress(OSError, ValueError):  # the terminal may be gone
            self._screen.progress("")
        super().close()

    def _lines(self, record: logging.LogRecord) -> Iterator[str]:
        if getattr(record, REASON, False):
            return  # part of the plan
        event = getattr(record, "event", None)
        if event == LogEvent.RUN_INFO:
            yield from self._plan()
        elif event == LogEvent.JOB_INFO:
            yield from self._begin(record)
        elif event == LogEvent.JOB_FINISHED:
            yield from self._finish(record)
        elif event == LogEvent.PROGRESS:
            if record.__dict__["done"] == record.__dict__["total"]:
                yield self._stages.end()
        elif event == LogEvent.JOB_ERROR:
            yield from self._fail(record)
        elif event not in SHOWN_OTHERWISE and not self._is_noise(record):
            yield from filter(None, [self.format(record)])

    def _plan(self) -> Iterator[str]:
        if not self._planned:
            self._planned = True
            known = None if "REASON" in self._quiet else self._reason
            yield from self._stages.plan(snakemake_internals.graph(self._workflow), known)

    def _begin(self, record: logging.LogRecord) -> Iterator[str]:
        if self.common_settings.dryrun:
            return
        line = self._stages.begin(record.__dict__["jobid"], record.__dict__["log"])
        if line is not None:
            yield line
        self._tick_from_now_on()

    def _finish(self, record: logging.LogRecord) -> Iterator[str]:
        yield from self._echo()
        line = self._stages.finish(record.__dict__["job_id"])
        if line is not None:
            yield line

    def _fail(self, record: logging.LogRecord) -> Iterator[str]:
        given = record.__dict__
        yield from self._echo()
        self._failed = True
        why = " ".join(str(given["rule_msg"] or "").split())
        why, self._died = self._died or why, ""
        yield self._stages.fail(given["jobid"], given["rule_name"], given["log"], why)

    def _is_noise(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if SCRIPT_FAILED.search(said):
            return True
        if died := SCRIPT_DIED.search(said):
            killed = died[1] == "SIGKILL"
            self._died = f"ended by {died[1]}" + (" (out of memory?)" if killed else "")
            return True
        if said.startswith("Complete log(s): "):
            return not self._failed
        noise = said.startswith((*NOISE, *(AFTER_FAILURE if self._failed else ())))
        self._failed = self._failed or said.startswith(AFTER_FAILURE)
        return noise

    def _echo(self) -> Iterator[str]:
        """What jobs on a cluster have told their logs; those here tell the terminal themselves."""
        here = snakemake_internals.runs_jobs_here(self._workflow)
        for job, message in self._stages.read():
            if message.notable and not (here or job.is_local):
                yield message.text

    def _tick_from_now_on(self) -> None:
        if self._ticks is None and not self._quiet & {"PROGRESS", "ALL"}:
            self._ticks = threading.Thread(target=self._tick, name="progress", daemon=True)
            with suppress(RuntimeError):  # no more threads: no progress
                self._ticks.start()

    def _tick(self) -> None:
        while not self._closed.wait(TICK_SECONDS):
            self.acquire()
            try:
                with suppress(OSError, ValueError):  # the terminal may be gone
                    self._show_progress()
            finally:
                self.release()

    def _show_progress(self) -> None:
        for line in self._echo():
            self._screen.line(line)
        text = self._stages.progress()
        if self._screen.redraws:
            self._screen.progress(text)
        elif text and time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            self._screen.line(f"{time.strftime('%H:%M:%S')} {text}")
