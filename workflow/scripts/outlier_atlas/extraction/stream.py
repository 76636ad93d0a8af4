"""Overlapped loop that reads the next batch and writes the last one during computation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from outlier_atlas import stopping
from outlier_atlas.checkpoint.weight_integrity import CheckedWeights
from outlier_atlas.devices.interface import Device, OnDevice, duplicate
from outlier_atlas.devices.registry import named, of
from outlier_atlas.extraction.job import Job
from outlier_atlas.extraction.summaries import SummaryWriter
from outlier_atlas.extraction.verify import compared, verifies
from outlier_atlas.extraction.work import Work
from outlier_atlas.extraction.writer import RowWriter, queue_bytes
from outlier_atlas.phases import COMPUTE, COPY, LOAD, phase
from outlier_atlas.progress import progress
from outlier_atlas.settings.sites import TOKEN_LOSS
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.commits import Commit, Rows
from outlier_atlas.store.layout import BOUNDARY, Target
from outlier_atlas.store.origin import DEVICE, VERSIONS, Origin
from outlier_atlas.store.repair import damaged_of
from outlier_atlas.store.target_chunks import DamagedChunkError

if TYPE_CHECKING:
    from outlier_atlas.extraction.capture import Keep, LayerGroup
    from outlier_atlas.roles.block_sites import Tap
    from outlier_atlas.roles.lm_head import Head


def stream(
    job: Job,
    work: Work,
    missing: Mapping[Rows, frozenset[Target]],
    group: LayerGroup,
    where: str,
    expected: float | None = None,
) -> None:
    """Run the batches of the missing rows, and write and commit these rows.

    The next batch is read and the last batch is written during the computation of a batch. After a
    signal, the current batch is completed, written and committed.

    Raises:
        Stopped: a signal asked the job to stop.
        ValueError: a chunk that the job reads or shares is damaged.
    """
    arrays = job.run.arrays()
    try:
        with stopping.deferred():
            _stream(job, work, missing, group, where, arrays, expected)
    except DamagedChunkError as damage:
        # Other jobs may have committed rows or deleted boundaries since then.
        arrays = job.run.arrays()
        raise job.run.give_up(arrays, _all_damaged(arrays, work, damage, job.threads)) from damage


def _all_damaged(
    arrays: Arrays, work: Work, first: DamagedChunkError, threads: int
) -> Sequence[DamagedChunkError]:
    """Return all damaged chunks that a job reads or shares.

    A job reads the boundary before its layer group, including chunks of other sequence shards. It
    shares chunks, or files with several chunks, of the arrays that it writes. All damage is
    returned at once, so that one further run repairs it.
    """
    layout, before = work.layout, work.boundary_before
    read = [(before, chunk) for chunk in range(layout.chunks)] if before else []
    shared = [rows.chunk for rows in work.rows if rows.stop - rows.start < layout.chunk_tokens]
    if layout.shard_chunks > 1:
        shared = list(range(layout.chunks))
    places = [*read, *product(work.stored, shared)]
    return list(damaged_of(arrays, places, threads)) or [first]


def _stream(
    job: Job,
    work: Work,
    missing: Mapping[Rows, frozenset[Target]],
    group: LayerGroup,
    where: str,
    arrays: Arrays,
    expected: float | None,
) -> None:
    summaries = SummaryWriter(job.run, work)
    destinations = destinations_of(missing)
    device = named(where)
    commits = job.run.commit_file(job.manifest.stem)
    # Details that affect only last bits do not make rows stale (see `versions`).
    details = {
        "batch_size": job.batch_size,
        DEVICE: where,
        "threads": job.threads,
        VERSIONS: Origin.now().versions,
    }
    weights = CheckedWeights(job.run.model_record, job.run.resources)

    def commit(rows: Rows) -> None:
        weights.check()  # an overwritten file changes the memory-mapped weights
        summarized = frozenset(target for target in missing[rows] if target.is_summary)
        checksums = arrays.written(rows, missing[rows] - summarized)
        checksums |= summaries.written(rows, summarized)
        sequences = work.fingerprints.sequences(rows.start, rows.stop)
        current = work.fingerprint(rows.chunk)
        commits.append(Commit(rows, current, checksums, sequences, details))

    batches = work.batches(missing, job.batch_size)
    starts = work.tokens.sequence_starts
    total = sum(int(starts[batch.stop] - starts[batch.start]) for batch in batches)
    with (
        RowWriter(
            arrays,
            summaries,
            missing,
            commit,
            queue_bytes(device),
            shares_cores=device.is_host,
            in_order=work.layout.shard_chunks > 1,
        ) as writer,
        progress(total, " tokens", f"layers {work.span}", expected) as bar,
    ):
        read = partial(_input, work, arrays, group.boundary_dtype)
        for batch, values in _inputs(read, device, batches):
            stopping.raise_if_asked()
            writer.next_batch()
            keep = _keeper(writer, destinations, starts, batch)
            if group.head is not None:
                keep = _keeper_of_losses(group.head, _ids(work, batch), keep)
            if batch is batches[0] and verifies(job.verify, len(batches)):
                keep = compared(group, values, keep)
            with phase(COMPUTE):
                group.run(values, keep)
            bar.update(int(starts[batch.stop] - starts[batch.start]))


def destinations_of(
    missing: Mapping[Rows, frozenset[Target]],
) -> dict[tuple[str, int], list[Target]]:
    """Return the targets of each site and layer; the last layer's output is the boundary."""
    destinations = defaultdict(list)
    for target in sorted(frozenset().union(*missing.values())):
        tap = (target.site, target.layer)
        if target.array == BOUNDARY:
            tap = ("resid_post", target.layer - 1)
        destinations[tap].append(target)
    return destinations


def _keeper(
    writer: RowWriter,
    destinations: Mapping[tuple[str, int], list[Target]],
    starts: NDArray[np.int64],
    batch: range,
) -> Keep:
    """Return a callback that passes each tensor of a batch to the writer, sequence by sequence."""

    def keep(tap: Tap, tensor_BTC: torch.Tensor) -> None:
        targets = destinations[tap.site, tap.layer]
        for on_device in {target.is_summary for target in targets}:
            with phase(COPY):
                copy = duplicate(tensor_BTC) if on_device else of(tensor_BTC).to_host(tensor_BTC)
            for target in targets:
                if target.is_summary == on_device:
                    for sequence, values_TC in zip(batch, copy.values, strict=True):
                        writer.put(target, int(starts[sequence]), values_TC, copy)

    return keep


def _keeper_of_losses(head: Head, ids_BT: torch.Tensor, keep: Keep) -> Keep:
    """Return a callback that replaces the output of the decoder by losses."""

    def keep_losses(tap: Tap, tensor_BTC: torch.Tensor) -> None:
        losses = tap.site == TOKEN_LOSS
        keep(tap, head.losses(tensor_BTC, ids_BT) if losses else tensor_BTC)

    return keep_losses


def _inputs(
    read: Callable[[range], torch.Tensor], device: Device, batches: Sequence[range]
) -> Iterator[tuple[range, torch.Tensor]]:
    """Yield each batch with its input, while the next input is read and copied to the device."""

    def prepare(batch: range) -> OnDevice:
        with phase(LOAD):
            return device.upload(read(batch))

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(prepare, batches[0])
        for batch, following in zip(batches, [*batches[1:], None], strict=True):
            with phase(LOAD):
                values = ahead.result().take()
            if following is not None:
                ahead = reader.submit(prepare, following)
            yield batch, values


def _input(work: Work, arrays: Arrays, dtype: torch.dtype, batch: range) -> torch.Tensor:
    """Return token ids (batch, token), or the boundary (batch, token, channel).

    The first layer group reads token ids. Later layer groups read the boundary before them.

    Args:
        work: the work of the job.
        arrays: the arrays of the store.
        dtype: dtype of the boundary; the stored float32 values represent it exactly.
        batch: sequences of the batch.
    """
    if work.group == 0:
        return _ids(work, batch)
    boundary = work.layout.boundary_after(work.group - 1)
    assert boundary is not None
    starts = work.tokens.sequence_starts
    rows = [arrays.read(boundary, int(starts[s]), int(starts[s + 1])) for s in batch]
    return torch.from_numpy(np.stack(rows)).to(dtype)


def _ids(work: Work, batch: range) -> torch.Tensor:
    """Return token ids (batch, token)."""
    ids = np.stack([work.tokens.sequence(sequence) for sequence in batch])
    return torch.from_numpy(ids.astype(np.int64))
