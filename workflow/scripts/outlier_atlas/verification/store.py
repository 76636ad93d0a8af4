"""Verification of the store: metadata, commits, chunks and summaries."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import product
from pathlib import Path

from outlier_atlas.extraction.run import manifest
from outlier_atlas.extraction.work import Work
from outlier_atlas.files import DamagedFileError
from outlier_atlas.store.commits import Commits, Rows
from outlier_atlas.store.layout import Target
from outlier_atlas.store.metadata import DamagedMetadataError
from outlier_atlas.store.run import Run
from outlier_atlas.store.summaries import DamagedSummaryError, LostSummaryError, check_itself
from outlier_atlas.verification.records import Records, known, run_again


def store(records: Records, whole: Work | None, threads: int) -> Iterator[str]:
    """Yield a line for each damage in the store of a run.

    Args:
        records: the records of the run.
        whole: the work of the run's first job; None if the tokens or the record of the model are
            damaged.
        threads: number of threads that read.
    """
    yield from _metadata(records)
    yield from _commits(records, whole)
    yield from _summaries(records, whole)
    yield from _chunks(records, threads)


def _metadata(records: Records) -> Iterator[str]:
    """Restore metadata, so that chunks can be read; `create_store` restores coordinates.

    Yields:
        A line for each damaged file.
    """
    for damage in records.run.restore_metadata():
        if not damage.file.exists():
            run_again(records.run.store_record)
        yield str(damage)


def _commits(records: Records, whole: Work | None) -> Iterator[str]:
    commits = records.run.commits()
    lost = list(_jobs(records, whole, commits)) if whole else []
    if lost:
        yield _lost(records.run, lost, commits.unreadable)
    elif commits.damaged:
        records.run.revise()  # remove damaged lines
        records.run.look_again()
        for path in commits.damaged:
            yield f"{path}: damaged (lines are not what was written); nothing else needs them"
    if whole:
        yield from _manifests(records, whole)


def _parts(records: Records, whole: Work) -> Iterator[tuple[Work, Path]]:
    """Yield the extraction jobs that are finished, with their manifests."""
    layout = whole.layout
    parts = list(product(range(len(layout.layer_groups)), range(layout.sequence_shards)))
    if len(parts) != len(records.manifests):
        return  # the configuration has changed, so the current jobs have not run yet
    for (group, shard), path in zip(parts, records.manifests, strict=True):
        if path.exists():
            yield Work(layout, whole.tokens, whole.model_fingerprint, group, shard), path


def _jobs(records: Records, whole: Work, commits: Commits) -> Iterator[str]:
    """Yield a description of each finished extraction job with incomplete commits."""
    for work, _ in _parts(records, whole):
        if work.missing(commits, len(work.sequences)):
            yield f"layers {work.span}, sequence shard {work.shard}"


def _manifests(records: Records, whole: Work) -> Iterator[str]:
    for work, path in _parts(records, whole):
        if known(path) != manifest(work):
            path.unlink()
            yield str(DamagedFileError(path, "it is not the manifest of this job"))


def _lost(run: Run, lost: Sequence[str], unreadable: Collection[Path]) -> str:
    where = ", ".join(map(str, unreadable)) or str(run.commit_files)
    run.revise()  # remove damaged lines
    run.look_again()
    return (
        f"{where}: damaged (not all commits are there of {'; '.join(lost)}); extraction makes "
        f"again what they stood for"
    )


def _summaries(records: Records, whole: Work | None) -> Iterator[str]:
    """Yield a line for each summary that is lost or damaged.

    Summaries of stored sites have no commits, so they are compared with their own checksums.
    """
    run = records.run
    lost: dict[tuple[Target, Rows], LostSummaryError] = {}
    if whole:
        summaries = run.lost_summaries(run.commits())
        lost = {(summary.target, summary.rows): summary for summary in summaries}
    for path, target, rows in run.summary_files():
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
        run.give_up_summaries(list(lost.values()))
    for summary in lost.values():
        yield f"{run.folder}: {summary}; extraction makes it again where it is needed"


def _chunks(records: Records, threads: int) -> Iterator[str]:
    """Yield a line for each chunk that differs from its commits."""
    run = records.run
    try:
        arrays = run.arrays_to_verify()
    except DamagedMetadataError as damage:
        # No record can restore this metadata, so the arrays and their chunks are dropped.
        run_again(records.run.store_record)
        yield f"{damage}; run `verify` again then"
        return
    chunks = list(run.damaged_chunks(arrays, threads))
    if chunks:
        run.give_up(arrays, chunks)
    for chunk in chunks:
        path = arrays.chunks.path(chunk.target, chunk.chunk)
        yield f"{path}: {chunk}; extraction makes it again where it is needed"
