"""Holds everything that a run has committed against its records, byte by byte.

Whatever is damaged is taken away, so that the same `snakemake` command makes it anew, and nothing
else. Nothing is computed here.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from outlier_atlas.ablation.streams import Streams
from outlier_atlas.data.tokens import HELDOUT, RECORD, TokenStore
from outlier_atlas.extraction.run import manifest
from outlier_atlas.extraction.work import Work
from outlier_atlas.files import DamagedFileError, read_record
from outlier_atlas.model.unchanged import Weights
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.commits import COMMITS, Commits, revise
from outlier_atlas.store.layout import Layout
from outlier_atlas.store.repair import (
    damaged,
    give_up,
    give_up_summaries,
    look_again,
    lost_summaries,
)
from outlier_atlas.store.shape import forget_passed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Records:
    """Where the records of a run lie.

    Attributes:
        run: its folder.
        model: record of its model; `resources` is the folder that it is relative to.
        tokens: its token store.
        heldout: the held-out tokens, where they are asked for.
        store: record of its store.
        manifests: of its extraction jobs, layer group by layer group.
    """

    run: Path
    model: Path
    resources: Path
    tokens: Path
    heldout: Path
    store: Path
    manifests: Sequence[Path]


def verify(records: Records, threads: int) -> None:
    """Say on a line each what of a run is damaged, and have the next run make it anew.

    Raises:
        ValueError: something was damaged, or there is no run.
    """
    if not records.store.exists():
        raise ValueError(f"{records.run}: there is no store yet, so nothing to verify")
    faults = list(_faults(records, threads))
    for fault in faults:
        log.error("%s", fault)
    if faults:
        noun = "file" if len(faults) == 1 else "files"
        raise ValueError(
            f"{records.run}: {len(faults)} damaged {noun} or chunks, all named above; run the same "
            f"snakemake command without `verify`: what is named is made anew, and nothing else"
        )
    log.info(
        "%s: the model, the tokens, every chunk and every summary are what was committed",
        records.run,
    )


def _faults(records: Records, threads: int) -> Iterator[str]:
    """Each damage in a line; what is damaged is gone when its line comes."""
    of_stages = (records.model, records.run / RECORD, records.store)
    damages = [*_records((*of_stages, *records.manifests)), *_weights_and_tokens(records)]
    yield from map(str, damages)
    if not records.store.exists():
        return  # what the store should hold is known once its record is made anew
    layout = Layout.from_record(read_record(records.store))
    unreadable = Commits.load(records.run / COMMITS).damaged
    # Else a boundary that was deleted when it had been read would be taken for damaged.
    forget_passed(records.run, Arrays(records.run, layout), layout)
    commits = Commits.load(records.run / COMMITS)
    if all(path.exists() for path in (*of_stages, records.tokens)):
        model = str(read_record(records.model)["fingerprint"])
        whole = Work(layout, TokenStore.open(records.tokens), model, 0, 0)
        yield from _jobs(records, whole, commits, unreadable)
        yield from _summaries(records.run, whole, commits)
        yield from _ablation(records, layout, model)
    yield from _chunks(records.run, layout, commits, threads)


def _ablation(records: Records, layout: Layout, model: str) -> Iterator[str]:
    if not (records.heldout.exists() and (records.run / HELDOUT).exists()):
        return
    heldout = TokenStore.open(records.heldout)
    for damage in Streams(records.run, layout, model, heldout).damaged():
        damage.path.unlink()
        yield f"{damage.path}: damaged ({damage.cause}); ablation makes it anew where it is needed"


def _summaries(run: Path, whole: Work, commits: Commits) -> Iterator[str]:
    lost = list(lost_summaries(run, whole.fingerprints, commits))
    if lost:
        give_up_summaries(run, lost)
    for summary in lost:
        yield f"{run}: {summary}; extraction makes it anew where it is needed"


def _chunks(run: Path, layout: Layout, commits: Commits, threads: int) -> Iterator[str]:
    arrays = Arrays(run, layout, commits.of)
    chunks = list(damaged(arrays, layout, threads))
    if chunks:
        give_up(run, arrays, chunks)
    for chunk in chunks:
        yield f"{run}: {chunk}; extraction makes it anew where it is needed"


def _records(paths: Sequence[Path]) -> Iterator[DamagedFileError]:
    for path in filter(Path.exists, paths):
        try:
            read_record(path)
        except DamagedFileError as damage:
            path.unlink()
            yield damage


def _weights_and_tokens(records: Records) -> Iterator[DamagedFileError]:
    def weights() -> None:
        Weights(records.model, records.resources).verify()

    def tokens() -> None:
        TokenStore.recorded(records.tokens, own)

    def heldout() -> None:
        TokenStore.recorded(records.heldout, others)

    own, others = records.run / RECORD, records.run / HELDOUT
    for record, look in ((records.model, weights), (own, tokens), (others, heldout)):
        try:
            if record.exists():
                look()
        except DamagedFileError as damage:
            damage.path.unlink(missing_ok=True)
            yield damage


def _jobs(
    records: Records, whole: Work, commits: Commits, unreadable: Collection[Path]
) -> Iterator[str]:
    """Finished extraction jobs whose manifests or commits are not what they were.

    Args:
        unreadable: commit files with lines that are not what was written.
    """
    layout = whole.layout
    parts = list(product(range(len(layout.layer_groups)), range(layout.sequence_shards)))
    if len(parts) != len(records.manifests):
        return  # configured otherwise meanwhile: the jobs of now are still to run
    lost = []
    for (group, shard), path in zip(parts, records.manifests, strict=True):
        work = Work(layout, whole.tokens, whole.model_fingerprint, group, shard)
        if path.exists() and read_record(path) != manifest(work):
            path.unlink()
            yield str(DamagedFileError(path, "it is not the manifest of this job"))
        elif path.exists() and work.missing(commits, len(work.sequences)):
            lost.append(f"layers {work.span}, sequence shard {shard}")
    if lost:
        yield _lost(records.run, lost, unreadable)


def _lost(run: Path, lost: Sequence[str], unreadable: Collection[Path]) -> str:
    where = ", ".join(map(str, unreadable)) or str(run / COMMITS)
    revise(run / COMMITS, lambda commit: commit)  # damaged lines go
    look_again(run)
    return (
        f"{where}: damaged (not all commits are there of {'; '.join(lost)}); extraction makes anew "
        f"what they stood for"
    )
