"""An extraction job: one layer group over one sequence shard, loaded once."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.extraction.devices import device
from outlier_atlas.extraction.transfer import Transfer
from outlier_atlas.extraction.work import Work
from outlier_atlas.extraction.writer import RowWriter
from outlier_atlas.files import fingerprint, read_record, write_record
from outlier_atlas.progress import progress
from outlier_atlas.store.arrays import Arrays, DamagedChunkError
from outlier_atlas.store.commits import COMMITS, Commit, CommitFile, Commits, Rows
from outlier_atlas.store.layout import BOUNDARY, Layout, Target
from outlier_atlas.store.repair import give_up

if TYPE_CHECKING:
    from outlier_atlas.extraction.capture import Keep, LayerGroup
    from outlier_atlas.model.roles import Tap

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What an extraction job is given.

    Attributes:
        run: folder of the run.
        store_record: the layout, as the rule that owns the store's shape recorded it.
        tokens: the token store.
        model_record: the record of the model.
        resources: folder that the model's record is relative to.
        group: number of the layer group, 0-based.
        shard: number of the sequence shard, 0-based.
        manifest: the record to leave when all is committed.
        trust_remote_code: whether code from the checkpoint may run.
        device: `auto`, `cuda`, `mps` or `cpu`.
        batch_size: sequences in a forward pass.
        device_memory: of the device, as the configuration has it; None takes what is free.
        threads: CPU threads.
    """

    run: Path
    store_record: Path
    tokens: Path
    model_record: Path
    resources: Path
    group: int
    shard: int
    manifest: Path
    trust_remote_code: bool = False
    device: str = "auto"
    batch_size: int = 1
    device_memory: str | None = None
    threads: int = 1

    @property
    def name(self) -> str:
        """What the job is called where others wait for it."""
        return f"{self.run.name}, layer group {self.group}, sequence shard {self.shard}"


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
        with device(job.device, job.name) as where:
            _say_where(job, where)
            _compute(job, work, missing, where)
    else:
        log.info("layers %s: all committed already, nothing to compute", _span(work))
    write_record(job.manifest, _manifest(work))


def _compute(job: Job, work: Work, missing: Mapping[Rows, frozenset[Target]], where: str) -> None:
    """Load once and stream until nothing is missing, in smaller batches where memory is short."""
    torch.set_num_threads(job.threads)
    _check_boundary(job, work, missing)
    _check_memory(job, work, where)
    layer_group = load(job, work, missing, where)
    size = job.batch_size
    while missing:
        try:
            stream(replace(job, batch_size=size), work, missing, layer_group, where)
            return
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise ValueError(_out_of_memory(work, where)) from error
            size = size // 2
            said = "layers %s: out of memory on %s; going on with batches of %d"
            log.warning(said, _span(work), where, size)
        if where.startswith("cuda"):
            torch.cuda.empty_cache()
        # What was committed counts; the batch in flight is done again, in smaller ones.
        missing = work.missing(Commits.load(job.run / COMMITS), size)


def _check_boundary(job: Job, work: Work, missing: Mapping[Rows, frozenset[Target]]) -> None:
    commits = Commits.load(job.run / COMMITS)
    unfounded = work.unfounded(commits, missing, job.batch_size)
    if unfounded:
        rows = min(unfounded, key=lambda rows: rows.start)
        raise ValueError(
            f"layers {_span(work)}: the residual stream before them lacks tokens {rows.start} to "
            f"{rows.stop - 1}; delete {job.manifest.parent} and run again: only what is missing is "
            f"computed"
        )


def _check_memory(job: Job, work: Work, where: str) -> None:
    """Before a weight is read: whether the run's largest job fits where it is going to be."""
    from outlier_atlas.extraction.plan import available, bytes_of, plan

    lengths = np.diff(work.tokens.sequence_starts)
    planned = plan(
        work.layout, read_record(job.model_record), job.resources, job.batch_size,
        int(lengths.max()), bool((lengths % work.layout.chunk_tokens).any()), job.trust_remote_code,
    )  # fmt: skip
    log.debug("plan:\n%s", planned.table(job.run))
    there, name = available(where)
    if job.device_memory is not None and (there is None or bytes_of(job.device_memory) < there):
        there, name = bytes_of(job.device_memory), "execution.device_memory"
    if there is not None:
        planned.check(there, not where.startswith("cuda"), name)


def _out_of_memory(work: Work, where: str) -> str:
    layers = len(work.layout.group_layers(work.group))
    advice = "a shorter dataset.sequence_length"
    if layers > 1:
        advice = f"more extraction.layer_groups (now {len(work.layout.layer_groups)}), or {advice}"
    return (
        f"layers {_span(work)}: out of memory on {where} with a single sequence; take {advice}. "
        f"What was computed is kept"
    )


def stream(
    job: Job, work: Work, missing: Mapping[Rows, frozenset[Target]], group: LayerGroup, where: str
) -> None:
    """Run the batches behind the missing rows, and write and commit the rows on the way.

    The next batch is read and the last one written while one computes.
    """
    arrays = Arrays(job.run, work.layout)
    destinations = _destinations(missing)
    transfer = Transfer(torch.device(where))
    commits = CommitFile(job.run / COMMITS / f"{job.manifest.stem}.jsonl")
    # Facts for whoever wonders about last bits: they make no row stale.
    details = {"batch_size": job.batch_size, "device": where, "threads": job.threads}

    def commit(rows: Rows) -> None:
        current = work.fingerprint(rows.chunk)
        commits.append(Commit(rows, current, missing[rows], details))

    batches = work.batches(missing, job.batch_size)
    starts = work.tokens.sequence_starts
    total = sum(int(starts[batch.stop] - starts[batch.start]) for batch in batches)
    with (
        commits,
        RowWriter(arrays, missing, commit) as writer,
        progress(total, " tokens", f"layers {_span(work)}") as bar,
    ):
        for batch, values in _inputs(job, work, arrays, batches):
            group.run(values, _keeper(writer, destinations, transfer, starts, batch))
            bar.update(int(starts[batch.stop] - starts[batch.start]))


def load(job: Job, work: Work, missing: Mapping[Rows, frozenset[Target]], where: str) -> LayerGroup:
    """The layer group with its weights on the device, and the taps that are wanted."""
    from outlier_atlas.extraction.capture import LayerGroup
    from outlier_atlas.model.architecture import describe
    from outlier_atlas.model.partial import load_layers, weight_bytes
    from outlier_atlas.model.source import load_config, locate

    started = time.monotonic()
    layers = work.layout.group_layers(job.group)
    folder = locate(read_record(job.model_record), job.resources)
    config = load_config(folder, job.trust_remote_code)
    architecture = describe(config, job.trust_remote_code)
    dtype = work.layout.dtype
    model = load_layers(folder, config, architecture, layers, dtype, job.trust_remote_code)
    model = model.to(where)
    log.info(
        "layers %s: %.1f MiB of weights, as %s on %s, loaded in %.1f s",
        _span(work), weight_bytes(model) / 2**20, dtype, where, time.monotonic() - started,
    )  # fmt: skip
    destinations = _destinations(missing)
    taps = [
        tap
        for layer in layers
        for tap in architecture.taps[layer].values()
        if (tap.site, layer) in destinations
    ]
    return LayerGroup(model, architecture, layers, taps)


def _destinations(
    missing: Mapping[Rows, frozenset[Target]],
) -> dict[tuple[str, int], list[Target]]:
    """Where the tensor of each site and layer goes; the last layer's output is the boundary."""
    destinations = defaultdict(list)
    for target in sorted(frozenset().union(*missing.values())):
        tap = (target.array, target.layer)
        if target.array == BOUNDARY:
            tap = ("resid_post", target.layer - 1)
        destinations[tap].append(target)
    return destinations


def _keeper(
    writer: RowWriter,
    destinations: Mapping[tuple[str, int], list[Target]],
    transfer: Transfer,
    starts: NDArray[np.int64],
    batch: range,
) -> Keep:
    """Hands each tensor of a batch to the writer, sequence by sequence."""

    def keep(tap: Tap, tensor_BTC: torch.Tensor) -> None:
        host = transfer(tensor_BTC)
        for target in destinations[tap.site, tap.layer]:
            for sequence, values_TC in zip(batch, host.values, strict=True):
                writer.put(target, int(starts[sequence]), values_TC, host)

    return keep


def _inputs(
    job: Job, work: Work, arrays: Arrays, batches: Sequence[range]
) -> Iterator[tuple[range, torch.Tensor]]:
    """Each batch with its token ids or its boundary; the next is read while one computes."""
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(_input, job, work, arrays, batches[0])
        for batch, following in zip(batches, [*batches[1:], None], strict=True):
            values = ahead.result()
            if following is not None:
                ahead = reader.submit(_input, job, work, arrays, following)
            yield batch, values


def _input(job: Job, work: Work, arrays: Arrays, batch: range) -> torch.Tensor:
    """Token ids (batch, token), or for a later layer group the boundary (batch, token, channel)."""
    if job.group == 0:
        ids = np.stack([work.tokens.sequence(sequence) for sequence in batch])
        return torch.from_numpy(ids.astype(np.int64))
    boundary = work.layout.boundary_after(job.group - 1)
    assert boundary is not None
    starts = work.tokens.sequence_starts
    try:
        rows = [arrays.read(boundary, int(starts[s]), int(starts[s + 1])) for s in batch]
    except DamagedChunkError as damage:
        raise give_up(job.run, damage) from damage
    return torch.from_numpy(np.stack(rows))


def _manifest(work: Work) -> dict[str, object]:
    """What the job stands for, without time or machine: equal work gives equal bytes."""
    layers = work.layout.group_layers(work.group)
    return {
        "layers": [layers[0], layers[-1]],
        "sequences": [work.sequences.start, work.sequences.stop - 1],
        "sites": list(work.layout.sites),
        "fingerprint": fingerprint([work.fingerprint(rows.chunk) for rows in work.rows]),
    }


def _span(work: Work) -> str:
    layers = work.layout.group_layers(work.group)
    return f"{layers[0]} to {layers[-1]}"


def _say_where(job: Job, where: str) -> None:
    """One job of the run says it on the terminal; every job has it in its log."""
    if where == "cpu" and job.device == "auto":
        level = logging.WARNING if job.group == job.shard == 0 else logging.DEBUG
        log.log(level, "no CUDA device here: running on the CPU, %d threads a job", job.threads)
