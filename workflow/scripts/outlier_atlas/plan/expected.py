"""Jobs of a run with their predicted times, and the lines about them in the plan."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from outlier_atlas.earlier_jobs import SNAKEMAKE, EarlierJob, Kind, earlier_jobs
from outlier_atlas.machine import machine
from outlier_atlas.plan import job_sizes
from outlier_atlas.plan.job_sizes import Sizes
from outlier_atlas.plan.job_time import EXTRACTION, JobTime, predict
from outlier_atlas.plan.requirements import Plan
from outlier_atlas.plan.run_time import (
    BETWEEN_SECONDS,
    RunJob,
    RunTime,
    by_rule,
    simulate,
)
from outlier_atlas.text import listed
from outlier_atlas.units import duration

WIDTH = 118
"""Maximum width of a line."""


@dataclass(frozen=True)
class Place:
    """Place in which the jobs of a run run, with the earlier jobs there.

    Attributes:
        device: title of the device of the forward pass; `cpu` for the host.
        threads: number of CPU threads of an extraction job.
        cores: number of cores that all jobs share.
        at_once: number of extraction jobs that run at the same time.
        earlier: earlier jobs on this machine.
        speed: measured multiplications per second of a matrix product; None if not measured.
    """

    device: str
    threads: int = 1
    cores: int = 1
    at_once: int = 1
    earlier: Sequence[EarlierJob] = ()
    speed: float | None = None

    @classmethod
    def here(cls, device: str, threads: int, cores: int, at_once: int, shared: Path) -> Place:
        """Return the place on this machine, with the earlier jobs in a folder."""
        return cls(device, threads, cores, at_once, earlier_jobs(shared, machine()))

    def knows(self, plan: Plan) -> bool:
        """Return whether an extraction job can be predicted from an earlier one."""
        return self.extraction(plan, 0, plan.layout.tokens).earlier is not None

    def extraction(self, plan: Plan, group: int, tokens: int) -> JobTime:
        """Return the predicted time of an extraction job.

        Args:
            plan: the plan of the run.
            group: index of the layer group.
            tokens: number of tokens that the job runs.
        """
        kind = Kind(EXTRACTION, machine(), self.device, plan.layout.dtype, plan.model, self.threads)
        sizes = job_sizes.of_layer_group(plan, group, tokens)
        return predict(kind, sizes, self.earlier, self.speed)

    def other(self, rule: str, sizes: Sizes | None = None, cores: int = 1) -> JobTime:
        """Return the predicted time of a job of another rule."""
        return predict(Kind(rule, machine(), cores=cores), sizes or {}, self.earlier)

    @property
    def between(self) -> float:
        """Seconds from the end of a job to the start of the next one."""
        known = [sum(job.main.values()) for job in self.earlier if job.kind.rule == SNAKEMAKE]
        return known[0] if known else BETWEEN_SECONDS


@dataclass(frozen=True)
class Stages:
    """The stages of a run in addition to extraction.

    Attributes:
        weight_bytes: bytes of the checkpoint whose weights are measured; None if they are not.
        heldout: number of held-out tokens of the ablation stage; 0 without one.
        rounded: sites whose quantization errors are measured.
        done: rules whose files other runs have left.
    """

    weight_bytes: int | None = None
    heldout: int = 0
    rounded: Sequence[str] = ()
    done: Sequence[str] = ()


AFTER = {
    "create_store": ("tokenize_dataset",),
    EXTRACTION: ("create_store",),
    "detect_outliers": (EXTRACTION,),
    "join_weights": ("detect_outliers", "measure_weights"),
    "ablate": ("detect_outliers", "tokenize_dataset"),
    "render_report": ("join_weights", "ablate"),
}
"""Rules that each rule waits for, by the files that it reads."""


def whole_run(plan: Plan, place: Place, stages: Stages) -> RunTime:
    """Return the predicted time of a run whose model and dataset are fetched."""
    jobs = [job for job in _jobs(plan, place, stages) if job.rule not in stages.done]
    return simulate(_connected(jobs), place.cores, place.at_once, place.between)


def of_extraction(plan: Plan, place: Place) -> RunTime:
    """Return the predicted time of all extraction jobs of a run."""
    jobs = list(_extraction(plan, place))
    return simulate(jobs, place.cores, place.at_once, place.between, start=0.0)


def _jobs(plan: Plan, place: Place, stages: Stages) -> Iterator[RunJob]:
    """Yield the jobs of a run; those of extraction wait for each other, the others for none yet."""

    def job(rule: str, sizes: Sizes | None = None, cores: int = 1) -> RunJob:
        return RunJob(rule, rule, place.other(rule, sizes, cores), cores=cores)

    layout = plan.layout
    if stages.weight_bytes is not None:
        yield job("measure_weights", job_sizes.of_checkpoint(stages.weight_bytes), place.cores)
    yield job("tokenize_dataset", job_sizes.of_tokens(layout.tokens))
    yield job("create_store")
    yield from _extraction(plan, place)
    yield job("detect_outliers", job_sizes.of_detection(layout, stages.rounded), place.cores)
    yield job("join_weights")
    if stages.heldout:
        yield job("ablate", job_sizes.of_tokens(stages.heldout), place.threads)
    yield job("render_report")


def _extraction(plan: Plan, place: Place) -> Iterator[RunJob]:
    # Jobs that begin together also compute the shards of the others, which then have nothing to do.
    jobs = min(plan.layout.sequence_shards, place.at_once)
    tokens = plan.layout.tokens // jobs
    for group in range(len(plan.groups)):
        time = place.extraction(plan, group, tokens)
        for shard in range(jobs):
            after = [_named(group - 1, shard)] if group else []
            yield RunJob(_named(group, shard), EXTRACTION, time, after, place.threads, gpus=1)


def _named(group: int, shard: int) -> str:
    return f"{EXTRACTION} {group} {shard}"


def left_out(stages: Stages) -> str:
    """Return what the time of a run does not include: `without fetching`."""
    return f"without {listed(['fetching', *stages.done])}"


def _connected(jobs: Sequence[RunJob]) -> list[RunJob]:
    """Return jobs that wait for all jobs of the rules before theirs."""
    of_rule = by_rule(jobs)
    connected = []
    for job in jobs:
        names = [each.name for rule in AFTER.get(job.rule, ()) for each in of_rule.get(rule, ())]
        connected.append(replace(job, after=[*job.after, *names]))
    return connected


def lines(time: RunTime, what: str, measured: bool) -> list[str]:
    """Return the lines of the plan about the time of a run.

    Args:
        time: the predicted time.
        what: what the time is of, to follow it: `without fetching`.
        measured: whether the speed of the device was measured for a guess.
    """
    guessed = [job for job in time.jobs if job.time.earlier is None]
    rules = list(by_rule(guessed))
    if not guessed:
        source = "as earlier jobs on this machine took"
    elif len(guessed) == len(time.jobs):
        source = "a guess: no such job ran here before"
    else:
        source = f"a guess for {listed(rules)}, which did not run here before"
    if EXTRACTION in rules and measured:
        source += "; the forward pass from a matrix product measured now"
    parts = [
        f"{rule} {_about(sum(job.time.seconds for job in jobs))}"
        + (f" ({len(jobs)} jobs)" if len(jobs) > 1 else "")
        for rule, jobs in by_rule(time.path).items()
    ]
    text = [f"Time: about {_about(time.seconds)} {what} ({source})."]
    if len(parts) > 1:
        text.append(f"Critical path: {', '.join(parts)}.")
    return [line for each in text for line in textwrap.wrap(each, WIDTH, break_on_hyphens=False)]


def _about(seconds: float) -> str:
    """Return a time, in seconds as long as minutes would be too coarse."""
    return f"{seconds:.0f} s" if 1 <= seconds < 300 else duration(seconds)
