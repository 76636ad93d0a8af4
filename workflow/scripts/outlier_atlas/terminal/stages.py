"""Stages of a run: the jobs of each rule, from their plan to their end."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from outlier_atlas.compat import snakemake_internals
from outlier_atlas.terminal.findings import finding
from outlier_atlas.terminal.joblog import JobLog, Message
from outlier_atlas.terminal.reasons import Known, reason
from outlier_atlas.units import duration


@dataclass
class Stage:
    """The jobs of a rule.

    Attributes:
        rule: name of the rule.
        title: description of the stage.
        jobs: jobs of Snakemake by number.
        running: logs of the running jobs by number.
        started: start time of the first job; 0.0 before it starts.
        finished: numbers of the jobs that succeeded.
    """

    rule: str
    title: str
    jobs: dict[int, Any]
    running: dict[int, JobLog] = field(default_factory=dict)
    started: float = 0.0
    finished: set[int] = field(default_factory=set)

    @property
    def done(self) -> bool:
        """Whether all jobs succeeded."""
        return len(self.finished) == len(self.jobs)

    def progress(self) -> str:
        """Return the number of finished jobs and the progress of running jobs, or ""."""
        messages = [log.progress for log in self.running.values() if log.progress]
        parts = [f"{len(self.finished)} of {len(self.jobs)} jobs"] if len(self.jobs) > 1 else []
        parts += [" | ".join(messages)] if messages else []
        return f"{self.rule}: {'; '.join(parts)}" if self.running and parts else ""


class Stages:
    """The stages of a run, from the plan to the end."""

    def __init__(self) -> None:
        self._stages: dict[str, Stage] = {}
        self._rules: dict[int, str] = {}
        self._started = time.monotonic()
        self._dag: Any = None

    def plan(self, dag: Any, known: Known | None) -> Iterator[str]:
        """Read the jobs of the graph, and yield a line with the reason for each rule.

        Args:
            dag: job graph of Snakemake.
            known: a function that returns the reason from a record; None omits reasons.
        """
        self._dag = dag
        jobs = self._take()
        if not jobs:
            return
        count = sum(map(len, jobs.values()))
        yield f"{count} {'job' if count == 1 else 'jobs'} to run:"
        width = max(map(len, jobs))
        for rule, of_rule in jobs.items():
            why = "" if known is None else reason(dag, of_rule, known)
            yield f"  {rule:{width}} {len(of_rule):5}  {why}".rstrip()

    def _take(self) -> dict[str, list[Any]]:
        """Read the current jobs of the graph by rule, in execution order; keep finished jobs."""
        jobs: dict[str, list[Any]] = defaultdict(list)
        for job in snakemake_internals.ordered_jobs(self._dag):
            jobs[job.rule.name].append(job)
        for rule, of_rule in jobs.items():
            numbered = {snakemake_internals.number_of(self._dag, job): job for job in of_rule}
            stage = self._stages.setdefault(rule, Stage(rule, _title(of_rule), numbered))
            finished = {n: job for n, job in stage.jobs.items() if n in stage.finished}
            stage.jobs = finished | numbered
            stage.title = _title(list(stage.jobs.values()))
            self._rules |= dict.fromkeys(numbered, rule)
        return jobs

    def begin(self, number: int, logs: Iterable[str]) -> str | None:
        """Record the start of a job; return the line of its stage for the first job."""
        if number not in self._rules and self._dag is not None:
            self._take()  # a checkpoint has extended the graph
        stage = self._of(number)
        if stage is None:
            return None
        for path in logs:
            stage.running[number] = JobLog(Path(path))
        if stage.started:
            return None
        stage.started = time.monotonic()
        many = f", {len(stage.jobs)} jobs" if len(stage.jobs) > 1 else ""
        return f"{_clock()} {stage.rule}: {stage.title}{many}"

    def finish(self, number: int) -> str | None:
        """Record the success of a job; return the line of its stage after the last job."""
        stage = self._of(number)
        if stage is None:
            return None
        stage.running.pop(number, None)
        stage.finished.add(number)
        if not stage.done:
            return None
        took = duration(time.monotonic() - stage.started)
        result = finding(list(stage.jobs.values()))
        return f"{_clock()} {stage.rule}: done in {took}" + (f"; {result}" if result else "")

    def fail(self, number: int, rule: str, logs: Iterable[str], why: str) -> str:
        """Record the failure of a job; return a line that names its log."""
        stage = self._of(number)
        if stage is not None:
            stage.running.pop(number, None)
        named = ", ".join(logs)
        parts = [f"{_clock()} {rule}: failed", *([why] if why else [])]
        return "; ".join([*parts, *([f"log: {named}"] if named else [])])

    def read(self) -> Iterator[tuple[Any, Message]]:
        """Read the logs of all running jobs; yield each new message with its job."""
        for stage in self._stages.values():
            for number, log in stage.running.items():
                for message in log.read():
                    yield stage.jobs[number], message

    def progress(self) -> str:
        """Return the progress of all running stages in one line."""
        return "   ".join(filter(None, (stage.progress() for stage in self._stages.values())))

    def end(self) -> str:
        """Return the line after the last job."""
        count = sum(len(stage.finished) for stage in self._stages.values())
        took = duration(time.monotonic() - self._started)
        return f"{_clock()} {count} {'job' if count == 1 else 'jobs'} done in {took}"

    def _of(self, number: int) -> Stage | None:
        return self._stages.get(self._rules.get(number, ""))


def _title(jobs: list[Any]) -> str:
    """Return the message of a rule with the wildcards of all jobs, as in `layer group 0 to 2`."""
    message = snakemake_internals.rule_message(jobs[0])
    if not message:
        return "begun"
    of_jobs = [snakemake_internals.wildcards_of(job) for job in jobs]
    names = {name for wildcards in of_jobs for name in wildcards}
    values = {name: {str(wildcards.get(name)) for wildcards in of_jobs} for name in names}
    wildcards = {name: _span(texts) for name, texts in values.items()}
    try:
        return str(message.format(wildcards=SimpleNamespace(**wildcards)))
    except (KeyError, IndexError, AttributeError, ValueError):
        # A rule of another workflow, whose message uses more than wildcards.
        return str(jobs[0].message)


def _span(values: set[str]) -> str:
    if all(re.fullmatch(r"\d+", value) for value in values):
        numbers = sorted(map(int, values))
        return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
    return ", ".join(sorted(values))


def _clock() -> str:
    return time.strftime("%H:%M:%S")
