"""Critical path of a run: the longest chain of jobs of which each reads files of the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from statistics import median

from outlier_atlas.job_times import JobTimes

LONGEST_GAP = 30.0
"""Seconds between two jobs from which on they belong to different commands."""


def predecessors(jobs: Sequence[JobTimes]) -> dict[str, set[str]]:
    """Return the jobs whose files each job reads, by name."""
    makers = {file: times.job for times in jobs for file in times.outputs}
    return {
        times.job: {makers[file] for file in times.inputs if file in makers} - {times.job}
        for times in jobs
    }


def before(jobs: Sequence[JobTimes]) -> dict[str, str | None]:
    """Return the job before each job on the longest chain that ends with it."""
    seconds = {times.job: times.wall for times in jobs}
    read = predecessors(jobs)
    total: dict[str, float] = {}
    chosen: dict[str, str | None] = {}
    for job in TopologicalSorter(read).static_order():
        last = max(sorted(read[job]), key=lambda other: total[other], default=None)
        chosen[job] = last
        total[job] = seconds[job] + (total[last] if last else 0.0)
    return chosen


def critical_path(jobs: Sequence[JobTimes], chosen: Mapping[str, str | None]) -> list[JobTimes]:
    """Return the jobs of the critical path, the first one first.

    Args:
        jobs: all jobs.
        chosen: the job before each job (`before`).
    """
    known = {times.job: times for times in jobs}
    chains = []
    for times in jobs:
        chain: list[JobTimes] = []
        job: str | None = times.job
        while job is not None:
            chain.insert(0, known[job])
            job = chosen[job]
        chains.append(chain)
    return max(chains, key=lambda chain: sum(times.wall for times in chain), default=[])


def between(jobs: Sequence[JobTimes]) -> float | None:
    """Return the median seconds from the end of the last job that a job waits for to its start.

    Jobs of another command do not count. None if there are no such jobs.
    """
    ends = {times.job: times.ended for times in jobs}
    read = predecessors(jobs)
    gaps = [
        times.started - max(ends[other] for other in read[times.job])
        for times in jobs
        if read[times.job]
    ]
    known = [gap for gap in gaps if 0 <= gap <= LONGEST_GAP]
    return median(known) if known else None
