"""Repair of damaged data, which is removed so that its jobs recompute it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.commits import Commit, Commits, Rows, revise, without
from outlier_atlas.store.fingerprints import Fingerprints
from outlier_atlas.store.layout import Layout, Target
from outlier_atlas.store.run_files import RunFiles
from outlier_atlas.store.summaries import (
    DamagedSummaryError,
    LostSummaryError,
    check,
    path_of,
)
from outlier_atlas.store.target_chunks import DamagedChunkError


def damaged(arrays: Arrays, layout: Layout, threads: int) -> Iterator[DamagedChunkError]:
    """Compare every counting chunk of a run with its commits, and yield each damage."""
    for target in layout.targets():
        yield from damaged_of(arrays, ((target, chunk) for chunk in range(layout.chunks)), threads)


def damaged_of(
    arrays: Arrays, places: Iterable[tuple[Target, int]], threads: int
) -> Iterator[DamagedChunkError]:
    """Compare chunks of targets with their commits, and yield each damage."""

    def look(place: tuple[Target, int]) -> DamagedChunkError | None:
        try:
            arrays.check(*place)
        except DamagedChunkError as damage:
            return damage
        return None

    with ThreadPoolExecutor(threads) as readers:
        yield from filter(None, readers.map(look, places))


def lost_summaries(
    run: RunFiles, fingerprints: Fingerprints, commits: Commits
) -> Iterator[LostSummaryError]:
    """Compare all summaries of sites that are not stored with their commits.

    Yields:
        An error for each lost summary.
    """
    layout = fingerprints.layout
    for summary, chunk in product(layout.summaries(), range(layout.chunks)):
        for target, rows, checksum in commits.serving(summary, chunk, fingerprints.of(chunk)):
            try:
                check(path_of(run, target, rows), fingerprints.summary(rows), checksum)
            except DamagedSummaryError as error:
                yield LostSummaryError(target, rows, error)


def give_up(run: RunFiles, arrays: Arrays, damages: Sequence[DamagedChunkError]) -> ValueError:
    """Remove damaged chunks and their commits, and make the extraction jobs check again.

    Returns:
        The error to raise. It names the damage, and says that the same command repairs it.
    """
    gone = {
        (damage.target, chunk)
        for damage in damages
        for chunk in arrays.chunks.remove(damage.target, damage.chunk)
    }
    first = arrays.chunks.path(damages[0].target, damages[0].chunk)
    return _given_up(run, first, damages, lambda target, rows: (target, rows.chunk) in gone)


def give_up_summaries(run: RunFiles, lost: Sequence[LostSummaryError]) -> ValueError:
    """Remove lost summaries and their commits, and make the extraction jobs check again.

    Returns:
        The error to raise. It names the loss, and says that the same command repairs it.
    """
    gone = {(summary.target, summary.rows) for summary in lost}
    error = _given_up(run, run.summaries, lost, lambda target, rows: (target, rows) in gone)
    for target, rows in gone:
        path_of(run, target, rows).unlink(missing_ok=True)  # after their commits
    return error


def _given_up(
    run: RunFiles,
    place: Path,
    damages: Sequence[DamagedChunkError | LostSummaryError],
    gone: Callable[[Target, Rows], bool],
) -> ValueError:
    def revised(commit: Commit) -> Commit:
        return without(commit, lambda target: gone(target, commit.rows))

    revise(run.commit_files, revised)
    look_again(run)
    more = f", and {len(damages) - 1} more" if len(damages) > 1 else ""
    them = "they" if more else "it"
    return ValueError(f"{place}: {damages[0]}{more}; run again: only {them} will be recomputed")


def look_again(run: RunFiles) -> None:
    """Remove the manifests of a run, so that every extraction job checks for missing rows."""
    for manifest in run.job_manifests.glob("*.json"):
        manifest.unlink(missing_ok=True)
