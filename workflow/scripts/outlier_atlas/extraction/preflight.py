"""Preflight of a job, which plans and refuses a run that cannot fit before weights are read."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from outlier_atlas.console import NOTICE
from outlier_atlas.devices.limits import whole
from outlier_atlas.devices.registry import HOST, candidates, named
from outlier_atlas.extraction.job import Job
from outlier_atlas.extraction.work import Work
from outlier_atlas.locks import holders
from outlier_atlas.plan import expected
from outlier_atlas.plan.advice import (
    block,
    fewest_groups,
    full_disk,
    leaner,
    refusal,
    remedy,
)
from outlier_atlas.plan.group import ENOUGH_TOKENS
from outlier_atlas.plan.memory_budget import ConcurrentJobs, MemoryBudget
from outlier_atlas.plan.requirements import Plan, plan
from outlier_atlas.plan.speed import faster_in_float32, with_speed
from outlier_atlas.plan.table import table
from outlier_atlas.settings.extraction import ExtractionSettings
from outlier_atlas.store.run_files import RunFiles
from outlier_atlas.units import bytes_of

log = logging.getLogger(__name__)

RESERVE = 0.1
"""Share of device memory that `batch_size: auto` reserves for the allocator and other uses."""


def planned(job: Job, work: Work, gpus: int) -> Plan:
    """Return the plan of the run of a job, with a number of devices for each job."""
    lengths = np.diff(work.tokens.sequence_starts)
    return plan(
        work.layout, job.run.model, job.run.resources, job.batch_size,
        int(lengths.max()), bool((lengths % work.layout.chunk_tokens).any()), job.trust_remote_code,
        gpus,
    )  # fmt: skip


def concurrent_jobs(jobs: int, device: str, gpus: int, run: Path) -> ConcurrentJobs:
    """Return the jobs of a run that share this machine, before devices are leased.

    Args:
        jobs: number of jobs that can run at the same time.
        device: configured device.
        gpus: number of GPUs of a job. Jobs without free GPUs wait before they load.
        run: folder of the run.
    """
    devices = [named(name) for name in candidates(device)]
    if devices and not devices[0].shares_host_memory:
        jobs = min(jobs, max(1, len(devices) // gpus))
    return ConcurrentJobs(jobs, holders(run, "extract_activations") - {os.getpid()})


def batch_size(run_plan: Plan, budget: MemoryBudget, sequences: int) -> int:
    """Return the largest useful power of two that fits, for `batch_size: auto`.

    The memory of the whole device determines the batch size. It is the same for all jobs of a run
    on equal devices, because the last bits of a mixture of experts depend on the batch.

    Args:
        run_plan: the plan for any batch size.
        budget: the share of the whole device that a job has.
        sequences: maximum number of sequences in a batch.
    """
    if budget.memory is not None:
        budget = replace(budget, memory=int(budget.memory * (1 - RESERVE)))
    size = 1
    while 2 * size <= sequences and 2 * size * run_plan.tokens <= ENOUGH_TOKENS[budget.host]:
        if not run_plan.batched(2 * size).fits(budget):
            break
        size *= 2
    return size


def automatic(
    run_plan: Plan, job: Job, work: Work, where: Sequence[str], concurrent: ConcurrentJobs
) -> int:
    """Return the configured batch size of a job, or the one that `auto` chooses."""
    if not job.auto_batch:
        return job.batch_size
    known = [whole(device, concurrent.jobs, concurrent.processes) for device in where]
    if job.device_memory is not None:
        known.append(bytes_of(job.device_memory))
    memory = min((size for size in known if size is not None), default=None)
    budget = MemoryBudget(named(where[0]).title, memory, "the whole device", None)
    size = batch_size(run_plan, budget, len(work.sequences))
    log.info("layers %s: execution.batch_size: auto is %d here", work.span, size)
    return size


def say(run_plan: Plan, budget: MemoryBudget, job: Job) -> None:
    """Log the plan and refuse a run that cannot fit.

    The first job of the run shows the plan on the terminal; other jobs write it to their logs.

    Raises:
        ValueError: the run cannot fit. A configuration that fits was logged.
    """
    first = job.group == job.shard == 0
    level = NOTICE if first else logging.DEBUG
    place = place_of(job, budget)
    place = with_speed(place, run_plan) if first else place
    time = expected.of_extraction(run_plan, place)
    lines = expected.lines(time, "for all extraction jobs", place.speed is not None)
    if first and budget.host:
        lines += faster_in_float32(run_plan.layout.dtype).splitlines()
    log.log(level, "%s", table(run_plan, budget, lines, job.run.folder))
    refuse(run_plan, budget, job.run.folder, _section(job), job.auto_groups)


def place_of(job: Job, budget: MemoryBudget) -> expected.Place:
    """Return where the extraction jobs of a run run, for predictions of their times."""
    cores = job.threads * job.jobs
    return expected.Place.here(budget.name, job.threads, cores, job.jobs, job.run.resources)


def _section(job: Job) -> dict[str, Any]:
    """Return the user's section `extraction`.

    The record of the store lacks keys that make nothing stale, so they come from the job.
    """
    recorded = job.run.store_description["extraction"]
    own = ExtractionSettings.model_validate(recorded | {"verify": job.verify})
    return own.model_dump(mode="json", exclude_defaults=True)


def refuse(
    run_plan: Plan,
    budget: MemoryBudget,
    run: Path,
    section: Mapping[str, Any],
    chosen: bool = False,
) -> None:
    """Refuse a run that cannot fit, after logging a configuration that fits.

    Args:
        run_plan: the plan of the run.
        budget: the memory of a job.
        run: folder of the run.
        section: the user's section `extraction`.
        chosen: whether `layer_groups: auto` chose the number of layer groups.

    Raises:
        ValueError: the run cannot fit. The message gives the reason.
    """
    reason = refusal(run_plan, budget)
    if reason is not None:
        ways = []
        if budget.alone is not None and run_plan.fits(budget.alone):
            ways.append("one at a time they fit (`--resources gpu=1`, or `make run GPUS=1`)")
        if chosen and (number := fewest_groups([(run_plan, budget)])):
            number_before = _groups(run_plan)
            reason = (
                f"extraction.layer_groups: auto was {number_before} when it was chosen; {reason}"
            )
            ways.append(
                f"extraction.layer_groups: {number} would fit, or delete "
                f"{RunFiles(run).layer_groups_record} to have the number chosen for this machine"
            )
        elif fits := remedy(run_plan, budget, run, section):
            log.warning("\nThis would fit:\n\n%s", fits)
            ways.append("the block above would fit")
        nothing = "not even one layer at a time fits, in any batch"
        raise ValueError("; ".join([reason, *(ways or [nothing])]))
    if (full := full_disk(run_plan, run)) is not None:
        fewer = leaner(run_plan, budget, run)
        if fewer is None:
            raise ValueError(full)
        log.warning("\nThis would fit:\n\n%s", block(section, run_plan, fewer))
        raise ValueError(
            f"{full}; the block above would fit, where neither detection.quantization_error nor "
            f"detection.exclude asks for values that it does not store"
        )


def _groups(run_plan: Plan) -> int:
    return len(run_plan.layout.layer_groups)


def advise_after_failure(run_plan: Plan, job: Job, work: Work, loaded: bool) -> str:
    """Return advice after memory ran out, and log a configuration that needs less memory.

    Args:
        run_plan: the plan of the run.
        job: the job.
        work: the work of the job.
        loaded: whether the weights were loaded when memory ran out.
    """
    groups = len(work.layout.layer_groups)
    doing = "with a single sequence" if loaded else "while its weights were loaded"
    failed = f"layers {work.span}: out of memory {doing}"
    finest = run_plan.one_group or groups == run_plan.running
    if finest and not loaded:
        return f"{failed}; they need a device with more memory. What was computed is kept"
    if finest:
        less = run_plan.shortened(run_plan.tokens // 2)
        way = f"a shorter dataset.sequence_length (now {run_plan.tokens})"
    else:
        less = run_plan.divided(min(2 * groups, run_plan.running))
        way = f"more extraction.layer_groups (now {groups})"
    log.warning("\nThis takes less:\n\n%s", block(_section(job), run_plan, less))
    return f"{failed}; take {way}, as in the block above. What was computed is kept"


def budget_of(where: Sequence[str], given: str | None, concurrent: ConcurrentJobs) -> MemoryBudget:
    """Return the memory budget on the devices of a job."""
    return MemoryBudget.of(where, named(where[0]).title, given, concurrent)


def foreseen(device: str, given: str | None, concurrent: ConcurrentJobs) -> MemoryBudget:
    """Return the budget of jobs on any devices of this machine, or on another machine's device.

    Args:
        device: configured device.
        given: `execution.device_memory`.
        concurrent: jobs that run at the same time.
    """
    here = candidates(device) or [HOST]
    if named(here[0]).is_host and given is not None and device != HOST:
        return MemoryBudget.elsewhere(given)
    return budget_of(here, given, concurrent)
