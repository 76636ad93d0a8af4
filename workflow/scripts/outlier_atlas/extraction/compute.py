"""Computation of an extraction job, which loads one layer group once for a sequence shard."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from outlier_atlas.checkpoint.weight_integrity import CheckedWeights
from outlier_atlas.devices.leases import devices
from outlier_atlas.devices.out_of_memory import short_of_memory
from outlier_atlas.devices.registry import named
from outlier_atlas.extraction import preflight
from outlier_atlas.extraction.ahead import compute_others
from outlier_atlas.extraction.job import Job
from outlier_atlas.extraction.measurement import Measurement
from outlier_atlas.extraction.stream import destinations_of, stream
from outlier_atlas.extraction.versions import check
from outlier_atlas.extraction.work import Work
from outlier_atlas.loading.malloc_tuning import few_kernels
from outlier_atlas.phases import COMPUTE, note
from outlier_atlas.plan.expected import Place
from outlier_atlas.plan.job_sizes import of_layer_group
from outlier_atlas.plan.memory_budget import ConcurrentJobs
from outlier_atlas.plan.requirements import Plan
from outlier_atlas.settings.sites import TOKEN_LOSS
from outlier_atlas.store.commits import Rows
from outlier_atlas.store.layout import Target
from outlier_atlas.text import count
from outlier_atlas.units import duration

if TYPE_CHECKING:
    from outlier_atlas.extraction.capture import LayerGroup

log = logging.getLogger(__name__)


def compute(job: Job, work: Work) -> None:
    """Lease the devices of a job, and compute and commit the missing rows.

    Raises:
        ValueError: the model or the store differs from its record.
        OSError: a file cannot be read or written.
    """
    gpus = min(job.gpus, len(work.layout.group_layers(job.group)))
    concurrent = preflight.concurrent_jobs(job.jobs, job.device, gpus, job.run.folder)
    with devices(job.device, gpus, job.name) as where:
        _log_device(job, where[0])
        check(job, work, where[0])
        _compute(job, work, where, concurrent)


def _compute(job: Job, work: Work, where: Sequence[str], concurrent: ConcurrentJobs) -> None:
    """Plan, load once and stream until no rows are missing; record memory and time."""
    torch.set_num_threads(job.threads)
    few_kernels()
    CheckedWeights(job.run.model_record, job.run.resources).check()
    run_plan = preflight.planned(job, work, len(where))
    job = replace(job, batch_size=preflight.automatic(run_plan, job, work, where, concurrent))
    run_plan = run_plan.batched(job.batch_size)
    missing = work.missing(job.run.commits(), job.batch_size)
    if not missing:
        return
    _check_boundary(job, work)
    budget = preflight.budget_of(where, job.device_memory, concurrent)
    preflight.say(run_plan, budget, job)
    layer_group: LayerGroup | None = None
    of_job = 0  # tokens of all shards that the job computes

    def run(job: Job, work: Work, missing: Mapping[Rows, frozenset[Target]]) -> None:
        nonlocal layer_group, of_job
        tokens = sum(int(rows.stop - rows.start) for rows in missing)
        of_job += tokens
        place = preflight.place_of(job, budget)
        expected = place.extraction(run_plan, job.group, tokens)
        _note(work, run_plan, of_job, place, named(where[0]).title)
        with Measurement(job, work, run_plan, where) as measurement:
            try:
                if layer_group is None:
                    layer_group = load(job, work, missing, where)
                measurement.loaded(layer_group.modules)
                left = expected.main[COMPUTE] if expected.earlier else None
                measurement.batch_size = _stream(job, work, missing, layer_group, where, left)
            except (RuntimeError, MemoryError) as error:
                if not short_of_memory(error):
                    raise
                loaded = layer_group is not None
                advice = preflight.advise_after_failure(run_plan, job, work, loaded)
                raise ValueError(advice) from error
        measurement.write(tokens)

    run(job, work, missing)
    if job.ahead:
        compute_others(job, work, missing, run)


def _stream(
    job: Job,
    work: Work,
    missing: Mapping[Rows, frozenset[Target]],
    layer_group: LayerGroup,
    where: Sequence[str],
    expected: float | None,
) -> int:
    """Stream until no rows are missing, and return the final batch size.

    The batch size is halved if memory runs out.

    Raises:
        RuntimeError: memory is too small for a single sequence (see `short_of_memory`).
    """
    size = job.batch_size
    while missing:
        try:
            part = replace(job, batch_size=size)
            stream(part, work, missing, layer_group, where[0], expected)
            break
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not short_of_memory(error):
                raise
            size = size // 2
            message = "layers %s: out of memory on %s; going on with batches of %d"
            log.warning(message, work.span, ", ".join(where), size)
        named(where[0]).empty_cache()
        # Committed rows count. The failed batch is repeated in smaller batches.
        missing = work.missing(job.run.commits(), size)
    return size


def _note(work: Work, run_plan: Plan, tokens: int, place: Place, device: str) -> None:
    """Record what the time of this job depends on, and its predicted time."""
    group = work.group
    expected = place.extraction(run_plan, group, tokens)
    first, last = run_plan.groups[group].layers
    note(
        device=device,
        dtype=work.layout.dtype,
        model=run_plan.model,
        layers=[first, last],
        tokens=tokens,
        sizes=of_layer_group(run_plan, group, tokens),
        predicted=expected.seconds,
    )
    source = "as earlier jobs took" if expected.earlier else "a guess"
    log.info("layers %s: about %s for this job (%s)", work.span, duration(expected.seconds), source)


def _check_boundary(job: Job, work: Work) -> None:
    unfounded = work.unfounded(job.run.commits(), job.batch_size)
    if unfounded:
        rows = min(unfounded, key=lambda rows: rows.start)
        job.run.look_again()
        raise ValueError(
            f"layers {work.span}: the residual stream before them lacks tokens {rows.start} to "
            f"{rows.stop - 1}; run again: only what is missing is computed"
        )


def load(
    job: Job, work: Work, missing: Mapping[Rows, frozenset[Target]], where: Sequence[str]
) -> LayerGroup:
    """Load the layer group onto the devices, with the taps of the missing rows."""
    from outlier_atlas.extraction.layer_group import load_group
    from outlier_atlas.roles.block_sites import tap_of_decoder
    from outlier_atlas.roles.cached_architecture import described

    layers = work.layout.group_layers(job.group)
    model = described(job.run.model, job.run.resources, job.trust_remote_code)
    architecture, destinations = model[2], destinations_of(missing)
    taps = [
        tap
        for layer in layers
        for tap in architecture.taps[layer].values()
        if (tap.site, layer) in destinations
    ]
    if (TOKEN_LOSS, layers[-1]) in destinations:
        taps.append(tap_of_decoder(layers[-1], architecture.head.channels))
    return load_group(
        model,
        layers,
        work.layout.dtype,
        job.trust_remote_code,
        taps,
        where,
        work.layout.sink_tokens,
    )


def _log_device(job: Job, where: str) -> None:
    """Log that the job runs on the CPU because no CUDA device exists.

    The first job of the run shows the message on the terminal; other jobs write it to their logs.
    """
    if named(where).is_host and job.device == "auto":
        level = logging.WARNING if job.group == job.shard == 0 else logging.DEBUG
        log.log(
            level, "no CUDA device here: running on the CPU, %s a job", count(job.threads, "thread")
        )
