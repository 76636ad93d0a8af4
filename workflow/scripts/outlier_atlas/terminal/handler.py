"""Handler that shows Snakemake's log as stages on a terminal."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
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
"""Seconds between two progress lines if the stream cannot redraw a line."""

RULES = Path(__file__).parents[3]
"""Folder of the workflow, whose rules have many jobs."""

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
"""Beginnings of Snakemake messages that are hidden; unknown messages are shown."""

AFTER_FAILURE = (
    "Exiting because a job execution failed",
    "WorkflowError:\nAt least one job did not complete successfully",
)  # fmt: skip
"""Beginnings of messages that are hidden after the failure of a job was shown."""

SHOWN_OTHERWISE = frozenset(
    {
        LogEvent.WORKFLOW_STARTED, LogEvent.SHELLCMD, LogEvent.JOB_STARTED, LogEvent.GROUP_INFO,
        LogEvent.RESOURCES_INFO, LogEvent.DEBUG_DAG, LogEvent.RULEGRAPH,
    }
)  # fmt: skip

SCRIPT_FAILED = re.compile(r"\.snakemake/scripts/.*returned non-zero exit status 1\.\s*$", re.S)
"""Pattern of Snakemake's message on a script that has already reported its error."""
SCRIPT_DIED = re.compile(r"\.snakemake/scripts/.*died with <Signals\.(SIG\w+): \d+>\.\s*$", re.S)


class StageHandler(LogHandlerBase):
    """A log handler that shows stages, with the interface of a logger plugin.

    Args:
        settings: Snakemake's output settings.
        workflow: the workflow object of Snakemake.
        known: a function that returns the reason from the record of a rule's inputs.
        default: Snakemake's handler, whose stream, filters and formatter this handler uses.
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
        self._last_progress = time.monotonic()
        self._ticks: threading.Thread | None = None
        self._closed = threading.Event()

    def add_reasons(self, known: Known) -> None:
        """Add a function that returns reasons, for another module of the workflow."""
        self._known.append(known)

    def _reason(self, file: str, newer: bool) -> str | None:
        return next(filter(None, (known(file, newer) for known in self._known)), None)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the lines for a log record to the terminal."""
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
        """Remove the progress line and close the handler."""
        self._closed.set()
        with suppress(OSError, ValueError):  # the terminal may be gone
            self._screen.progress("")
        super().close()

    def _lines(self, record: logging.LogRecord) -> Iterator[str]:
        if getattr(record, REASON, False):
            return  # the plan shows reasons
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
            alone = logging.getLogger("snakemake.logging").handlers == [self]
            if self.common_settings.dryrun and alone:
                snakemake_internals.list_first_jobs(self._workflow, RULES)

    def _begin(self, record: logging.LogRecord) -> Iterator[str]:
        if self.common_settings.dryrun:
            return
        line = self._stages.begin(record.__dict__["jobid"], record.__dict__["log"])
        if line is not None:
            yield line
        self._start_ticks()

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
        message = record.getMessage()
        if SCRIPT_FAILED.search(message):
            return True
        if died := SCRIPT_DIED.search(message):
            killed = died[1] == "SIGKILL"
            self._died = f"ended by {died[1]}" + (" (out of memory?)" if killed else "")
            return True
        if message.startswith("Complete log(s): "):
            return not self._failed
        noise = message.startswith((*NOISE, *(AFTER_FAILURE if self._failed else ())))
        self._failed = self._failed or message.startswith(AFTER_FAILURE)
        return noise

    def _echo(self) -> Iterator[str]:
        """Yield notable messages from the logs of jobs on a cluster.

        Jobs on this machine write to the terminal themselves.
        """
        here = snakemake_internals.runs_jobs_here(self._workflow)
        for job, message in self._stages.read():
            if message.notable and not (here or job.is_local):
                yield message.text

    def _start_ticks(self) -> None:
        if self._ticks is None and not self._quiet & {"PROGRESS", "ALL"}:
            self._ticks = threading.Thread(target=self._tick, name="progress", daemon=True)
            with suppress(RuntimeError):  # no thread can be started, so no progress is shown
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
        elif text and time.monotonic() - self._last_progress >= LINE_SECONDS:
            self._last_progress = time.monotonic()
            self._screen.line(f"{time.strftime('%H:%M:%S')} {text}")
