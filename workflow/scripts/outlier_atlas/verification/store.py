"""The store of a run: metadata, commits, chunks and summaries."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import product
from pathlib import Path

from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.extraction.run import manifest
from outlier_atlas.extraction.work import Work
from outlier_atlas.files import DamagedFileError
from outlier_atlas.store import metadata
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.commits import COMMITS, Commits, Rows, revise
from outlier_atlas.store.layout import Layout, Target
from outlier_atlas.store.repair import (
    damaged,
    give_up,
    give_up_summaries,
    look_again,
    lost_summaries,
)
from outlier_atlas.store.summaries import DamagedSummaryError, LostSummaryError, check_itself, files
from outlier_atlas.verification.records import Records, known, run_again


def store(
    records: Records, layout: Layout, tokens: TokenStore | None, model: str | None, threads: int
) -> Iterator[str]:
    """What of a run's store is not what was written.

    Args:
        tokens: of the run; None where they were damaged.
        model: fingerprint of the weights; None where the record of the model was damaged.
    """
    yield from _metadata(records)
    whole = Work(layout, tokens, model, 0, 0) if tokens and model else None
    yield from _commits(records, whole)
    yield from _summaries(records, whole)
    yield from _chunks(records, layout, threads)


def _metadata(records: Records) -> Iterator[str]:
    """Metadata is restored here, so that chunks can be read; coordinates by `create_store`."""
    try:
        damages = metadata.restore(records.run)
    except metadata.DamagedMetadataError as of_record:
        metadata.remove(records.run)
        damages = [of_record]
    for damage in damages:
        if not damage.file.exists():
            run_again(records.store)
        yield str(damage)


def _commits(records: Records, whole: Work | None) -> Iterator[str]:
    commits = Commits.load(records.run / COMMITS)
    lost = list(_jobs(records, whole, commits)) if whole else []
    if lost:
        yield _lost(records.run, lost, commits.unreadable)
    elif commits.damaged:
        revise(records.run / COMMITS, lambda commit: commit)  # damaged lines go
        look_again(records.run)
        for path in commits.damaged:
            yield f"{path}: damaged (lines are not what was written); nothing else needs them"
    if whole:
        yield from _manifests(records, whole)


def _parts(records: Records, whole: Work) -> Iterator[tuple[Work, Path]]:
    """The extraction jobs that are finished, with their manifests."""
    layout = whole.layout
    parts = list(product(range(len(layout.layer_groups)), range(layout.sequence_shards)))
    if len(parts) != len(records.manifests):
        return  # configured otherwise meanwhile: the jobs of now are still to run
    for (group, shard), path in zip(parts, records.manifests, strict=True):
        if path.exists():
            yield Work(layout, whole.tokens, whole.model_fingerprint, group, shard), path


def _jobs(records: Records, whole: Work, commits: Commits) -> Iterator[str]:
    """Finished extraction jobs whose commits are not all there."""
    for work, _ in _parts(records, whole):
        if work.missing(commits, len(work.sequences)):
            yield f"layers {work.span}, sequence shard {work.shard}"


def _manifests(records: Records, whole: Work) -> Iterator[str]:
    for work, path in _parts(records, whole):
        if known(path) != manifest(work):
            path.unlink()
            yield str(DamagedFileError(path, "it is not the manifest of this job"))


def _lost(run: Path, lost: Sequence[str], unreadable: Collection[Path]) -> str:
    where = ", ".join(map(str, unreadable)) or str(run / COMMITS)
    revise(run / COMMITS, lambda commit: commit)  # damaged lines go
    look_again(run)
    return (
        f"{where}: damaged (not all commits are there of {'; '.join(lost)}); extraction makes "
        f"again what they stood for"
    )


def _summaries(records: Records, whole: Work | None) -> Iterator[str]:
    """Summaries that are lost, or whose bytes are not what was written.

    Those of stored sites have no commits: they are compared with their own checksums.
    """
    run = records.run
    lost: dict[tuple[Target, Rows], LostSummaryError] = {}
    if whole:
        found = lost_summaries(run, whole.fingerprints, Commits.load(run / COMMITS))
        lost = {(summary.target, summary.rows): summary for summary in found}
    for path, target, rows in files(run):
        try:
            check_itself(path)
        except DamagedSummaryError as damage:
            path.unlink()
            if target.is_summary:
                lost.setdefault((target, rows), LostSummaryError(target, rows, damage))
            else:
                run_again(records.detected)
                yield f"{path}: damaged; detection makes it again"
    if lost:
        give_up_summaries(run, list(lost.values()))
    for summary in lost.values():
        yield f"{run}: {summary}; extraction makes it again where it is needed"


def _chunks(records: Records, layout: Layout, threads: int) -> Iterator[str]:
    """Chunks that are not what was committed."""
    run = records.run
    commits = Commits.load(run / COMMITS)
    try:
        arrays = Arrays(run, layout, commits.of, recorded=False)
    except metadata.DamagedMetadataError as damage:
        # Metadata that no record can restore: arrays are dropped, and their chunks with them.
        run_again(records.store)
        yield f"{damage}; run `verify` again then"
        return
    chunks = list(damaged(arrays, layout, threads))
    if chunks:
        give_up(run, arrays, chunks)
    for chunk in chunks:
        path = arrays.chunks.path(chunk.target, chunk.chunk)
        yield f"{path}: {chunk}; extraction makes it again where it is needed"
