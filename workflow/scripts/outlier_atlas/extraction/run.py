"""An extraction job: one layer group over one sequence shard, loaded once."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.extraction.devices import devices
from outlier_atlas.extraction.job import Job
from outlier_atlas.extraction.stream import destinations_of, stream
from outlier_atlas.extraction.work import Work
from outlier_atlas.files import fingerprint, read_record, write_record
from outlier_atlas.store.commits import COMMITS, Commits, Rows
from outlier_atlas.store.layout import Layout, Target

if TYPE_CHECKING:
    from outlier_atlas.extraction.capture import LayerGroup

log = logging.getLogger(__name__)


def extract(job: Job) -> None:
    """Compute and commit the rows that are missing; without any, no model is loaded.

    Raises:
        ValueError: the model, the tokens or the store are not what their records say.
        OSError: a file cannot be read or written.
    """
    layout = Layout.from_record(read_record(job.store_record))
    model = read_record(job.model_record)
    work = Work(
        layout, TokenStore.open(job.tokens), str(model["fingerprint"]), job.group, job.shard
    )
    missing = work.missing(Commits.load(job.run / COMMITS), job.batch_size)
    if missing:
        gpus = min(job.gpus, len(layout.group_layers(job.group)))
        with devices(job.device, gpus, job.name) as where:
            _say_where(job, where[0])
            _compute(job, work, missing, where)
    else:
        log.info("layers %s: all committed already, nothing to compute", work.span)
    write_record(job.manifest, _manifest(work))


def _compute(
    job: Job, work: Work, missing: Mapping[Rows, frozenset[Target]], where: Sequence[str]
) -> None:
    """Load once and stream until nothing is missing, in smaller batches where memory is short."""
    torch.set_num_threads(job.threads)
    _check_boundary(job, work, missing)
    _check_memory(job, work, where)
    layer_group = load(job, work, missing, where)
    size = job.batch_size
    while missing:
        try:
            stream(replace(job, batch_size=size), work, missing, layer_group, where[0])
            return
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise ValueError(_out_of_memory(work, where[0])) from error
            size = size // 2
            said = "layers %s: out of memory on %s; going on with batches of %d"
            log.warning(said, work.span, ", ".join(where), size)
        if where[0].startswith("cuda"):
            torch.cuda.empty_cache()
        # What was committed counts; the batch in flight is done again, in smaller ones.
        missing = work.missing(Commits.load(job.run / COMMITS), size)


def _check_boundary(job: Job, work: Work, missing: Mapping[Rows, frozenset[Target]]) -> None:
    commits = Commits.load(job.run / COMMITS)
    unfounded = work.unfounded(commits, missing, job.batch_size)
    if unfounded:
        rows = min(unfounded, key=lambda rows: rows.start)
        raise ValueError(
            f"layers {work.span}: the residual stream before them lacks tokens {rows.start} to "
            f"{rows.stop - 1}; delete {job.manifest.parent} and run again: only what is missing is "
            f"computed"
        )


def _check_memory(job: Job, work: Work, where: Sequence[str]) -> None:
    """Before a weight is read: whether the run's largest job fits where it is going to be."""
    from outlier_atlas.extraction.plan import available, bytes_of, plan

    lengths = np.diff(work.tokens.sequence_starts)
    planned = plan(
        work.layout, read_record(job.model_record), job.resources, job.batch_size,
        int(lengths.max()), bool((lengths % work.layout.chunk_tokens).any()), job.trust_remote_code,
        len(where),
    )  # fmt: skip
    log.debug("plan:\n%s", planned.table(job.run))
    there, name = min(map(available, where), key=lambda known: known[0] or 0)
    if job.device_memory is not None and (there is None or bytes_of(job.device_memory) < there):
        there, name = bytes_of(job.device_memory), "execution.device_memory"
    if there is not None:
        planned.check(there, not where[0].startswith("cuda"), name)


def _out_of_memory(work: Work, where: str) -> str:
    layers = len(work.layout.group_layers(work.group))
    advice = "a shorter dataset.sequence_length"
    if layers > 1:
        advice = f"more extraction.layer_groups (now {len(work.layout.layer_groups)}), or {advice}"
    return (
        f"layers {work.span}: out of memory on {where} with a single sequence; take {advice}. "
        f"What was computed is kept"
    )


def load(
    job: Job, work: Work, missing: Mapping[Rows, frozenset[Target]], where: Sequence[str]
) -> LayerGroup:
    """The layer group with its weights on the devices, and the taps that are wanted."""
    from outlier_atlas.extraction.capture import LayerGroup
    from outlier_atlas.model.architecture import describe
    from outlier_atlas.model.partial import load_layers, weight_bytes
    from outlier_atlas.model.placement import place
    from outlier_atlas.model.source import load_config, locate

    started = time.monotonic()
    layers = work.layout.group_layers(job.group)
    folder = locate(read_record(job.model_record), job.resources)
    config = load_config(folder, job.trust_remote_code)
    architecture = describe(config, job.trust_remote_code)
    dtype = work.layout.dtype
    model = load_layers(folder, config, architecture, layers, dtype, job.trust_remote_code)
    place(model, architecture.stack, layers, where)
    log.info(
        "layers %s: %.1f MiB of weights, as %s on %s, loaded in %.1f s",
        work.span, weight_bytes(model) / 2**20, dtype, ", ".join(where), time.monotonic() - started,
    )  # fmt: skip
    destinations = destinations_of(missing)
    taps = [
        tap
        for layer in layers
        for tap in architecture.taps[layer].values()
        if (tap.site, layer) in destinations
    ]
    return LayerGroup(model, architecture, layers, taps)


def _manifest(work: Work) -> dict[str, object]:
    """What the job stands for, without time or machine: equal work gives equal bytes."""
    layers = work.layout.group_layers(work.group)
    return {
        "layers": [layers[0], layers[-1]],
        "sequences": [work.sequences.start, work.sequences.stop - 1],
        "sites": list(work.layout.sites),
        "fingerprint": fingerprint([work.fingerprint(rows.chunk) for rows in work.rows]),
    }


def _say_where(job: Job, where: str) -> None:
    """One job of the run says it on the terminal; every job has it in its log."""
    if where == "cpu" and job.device == "auto":
        level = logging.WARNING if job.group == job.shard == 0 else logging.DEBUG
        log.log(level, "no CUDA device here: running on the CPU, %d threads a job", job.threads)
