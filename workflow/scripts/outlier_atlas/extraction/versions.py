"""Growth of a run under other versions, or on another kind of device, than before.

Only a run that lacks something grows: one that is complete stays as it is, whatever is installed.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import product

from outlier_atlas.extraction.job import Job
from outlier_atlas.extraction.work import Work
from outlier_atlas.store.commits import Commit, Commits, without
from outlier_atlas.store.origin import Origin, in_words, others, refusal

log = logging.getLogger(__name__)


def settle(job: Job, work: Work, commits: Commits) -> Commits:
    """Apply `execution.on_new_versions` before torch is imported and the device is known.

    With `recompute` the commits of other origins go, of all layer groups and sequence shards: a
    boundary of one origin never leads into a layer group of another. Every job does so that finds
    the run incomplete, so that it does not matter which one comes first.

    Returns:
        The commits that count from here on.

    Raises:
        ValueError: this job would grow the run, which `refuse` does not allow.
    """
    now = Origin.now("" if job.device == "auto" else job.device)
    found = foreign(work, commits, now)
    if not found:
        return commits
    if job.on_new_versions == "refuse" and work.missing(commits, size_of(job, work)):
        raise ValueError(refusal(job.run.folder, found, now))
    if job.on_new_versions != "recompute" or not _incomplete(job, work, commits):
        return commits
    dropped = job.run.revise(lambda commit: _without_others(work, commit, now))
    if dropped:
        log.warning(
            "%s: %d commits of %s no longer count; what they stand for is computed again under %s "
            "(execution.on_new_versions: recompute)", job.run.name, dropped, in_words(found), now,
        )  # fmt: skip
    return job.run.commits()


def check(job: Job, work: Work, device: str) -> None:
    """Apply `execution.on_new_versions` to a job that computes, once its device is known.

    Raises:
        ValueError: it may not compute.
    """
    now = Origin.now(device)
    found = foreign(work, job.run.commits(), now)
    if not found:
        return
    if job.on_new_versions == "keep":
        log.warning(
            "layers %s: the run has numbers of %s, and goes on under %s (execution.on_new_versions:"
            " keep)", work.span, in_words(found), now,
        )  # fmt: skip
    elif job.on_new_versions == "recompute":
        # With `auto` two jobs could drop each other's commits for ever.
        raise ValueError(
            f"{job.run.folder}: has numbers of {in_words(found)}, and this job is on {now.device}; "
            f"execution.on_new_versions: recompute needs execution.device: {now.device} (or the "
            f"device of before) in place of auto"
        )
    else:
        raise ValueError(refusal(job.run.folder, found, now))


def foreign(work: Work, commits: Commits, now: Origin) -> list[Origin]:
    """Return the origins other than `now` of the commits that count, of all jobs of a run."""
    return others((Origin.of(each.details) for each in commits if _counts(work, each)), now)


def size_of(job: Job, work: Work) -> int:
    """Return the number of sequences in a batch; with `auto` the largest that it can be."""
    return len(work.sequences) if job.auto_batch else job.batch_size


def _incomplete(job: Job, work: Work, commits: Commits) -> bool:
    """Whether any job of the run has something to compute."""
    layout = work.layout
    parts = product(range(len(layout.layer_groups)), range(layout.sequence_shards))
    each = (replace(work, group=group, shard=shard) for group, shard in parts)
    return any(part.missing(commits, size_of(job, part)) for part in each)


def _without_others(work: Work, commit: Commit, now: Origin) -> Commit:
    if _counts(work, commit) and now.differs(Origin.of(commit.details)):
        return without(commit, lambda target: True)
    return commit


def _counts(work: Work, commit: Commit) -> bool:
    return commit.fingerprint == work.fingerprint(commit.rows.chunk)
