"""Time of a whole run: its jobs, which of them wait for which, and how many run side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outlier_atlas.plan.job_time import JobTime

START_SECONDS = 2.5
"""Seconds from the start of Snakemake to its first job."""

BETWEEN_SECONDS = 0.7
"""Seconds from the end of a job to the start of the next one, where none are measured."""


@dataclass(frozen=True)
class RunJob:
    """A job of a run.

    Attributes:
        name: name of the job.
        rule: name of its rule.
        time: its predicted time.
        after: names of the jobs that it waits for.
        cores: number of cores.
        gpus: number of GPUs.
    """

    name: str
    rule: str
    time: JobTime
    after: Sequence[str] = ()
    cores: int = 1
    gpus: int = 0


@dataclass(frozen=True)
class RunTime:
    """The predicted time of a run.

    Attributes:
        seconds: seconds from the start of the command to the end of the last job.
        path: the jobs of which each began when the one before it ended, from the first job to the
            last.
        jobs: all jobs.
    """

    seconds: float
    path: Sequence[RunJob]
    jobs: Sequence[RunJob]


def simulate(
    jobs: Sequence[RunJob],
    cores: int,
    gpus: int | None,
    between: float = BETWEEN_SECONDS,
    start: float = START_SECONDS,
) -> RunTime:
    """Return the time of jobs that start as soon as their inputs, cores and GPUs are there.

    Args:
        jobs: the jobs of the run, in the order in which they start where several could.
        cores: number of cores that the jobs share.
        gpus: number of GPUs that the jobs share; None is no limit.
        between: seconds from the end of a job to the start of a next one.
        start: seconds before the first job.
    """
    ends: dict[str, float] = {}
    before: dict[str, str | None] = {}
    running: list[RunJob] = []
    waiting = list(jobs)
    now, ended = start, None
    known = {job.name: job for job in jobs}
    while waiting or running:
        for job in list(waiting):
            done = {name for name, end in ends.items() if end <= now}
            if set(job.after) & known.keys() <= done and _fits(job, running, cores, gpus):
                waiting.remove(job)
                running.append(job)
                before[job.name] = ended
                ends[job.name] = now + (between if ended else 0.0) + job.time.seconds
        assert running, "jobs wait for jobs that are not in the run"
        first = min(running, key=lambda job: ends[job.name])
        running.remove(first)
        now, ended = ends[first.name], first.name
    path: list[RunJob] = []
    name = ended
    while name is not None:
        path.insert(0, known[name])
        name = before[name]
    return RunTime(now if jobs else 0.0, path, jobs)


def _fits(job: RunJob, running: Sequence[RunJob], cores: int, gpus: int | None) -> bool:
    used = sum(min(other.cores, cores) for other in running)
    leased = sum(other.gpus for other in running)
    enough = gpus is None or leased + min(job.gpus, gpus) <= gpus
    return used + min(job.cores, cores) <= cores and enough


def by_rule(jobs: Sequence[RunJob]) -> Mapping[str, Sequence[RunJob]]:
    """Return jobs by their rules, in the order of the first job of each."""
    found: dict[str, list[RunJob]] = {}
    for job in jobs:
        found.setdefault(job.rule, []).append(job)
    return found
