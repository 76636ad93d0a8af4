"""Rules for computing missing rows with other versions or on another kind of device.

The rules apply only to incomplete runs. A complete run stays as it is with any versions.
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

    With `recompute`, the commits of other origins are removed for all layer groups and sequence
    shards. Therefore a layer group never reads a boundary of another origin. Every job that finds
    the run incomplete removes them, so the order of jobs does not matter.

    Returns:
        The commits that count afterwards.

    Raises:
        ValueError: this job would add rows of another origin, which `refuse` does not allow.
    """
    now = Origin.now("" if job.device == "auto" else job.device)
    origins = foreign(work, commits, now)
    if not origins:
        return commits
    if job.on_new_versions == "refuse" and work.missing(commits, size_of(job, work)):
        raise ValueError(refusal(job.run.folder, origins, now))
    if job.on_new_versions != "recompute" or not _incomplete(job, work, commits):
        return commits
    dropped = job.run.revise(lambda commit: _without_others(work, commit, now))
    if dropped:
        log.warning(
            "%s: %d commits of %s no longer count; what they stand for is computed again under %s "
            "(execution.on_new_versions: recompute)", job.run.name, dropped, in_words(origins), now,
        )  # fmt: skip
    return job.run.commits()


def check(job: Job, work: Work, device: str) -> None:
    """Apply `execution.on_new_versions` to a job that computes, once its device is known.

    Raises:
        ValueError: the job must not compute.
    """
    now = Origin.now(device)
    origins = foreign(work, job.run.commits(), now)
    if not origins:
        return
    if job.on_new_versions == "keep":
        log.warning(
            "layers %s: the run has numbers of %s, and goes on under %s (execution.on_new_versions:"
            " keep)", work.span, in_words(origins), now,
        )  # fmt: skip
    elif job.on_new_versions == "recompute":
        # With `auto`, two jobs could drop each other's commits endlessly.
        raise ValueError(
            f"{job.run.folder}: has numbers of {in_words(origins)}, and this job is on "
            f"{now.device}; execution.on_new_versions: recompute needs execution.device: "
            f"{now.device} (or the device of before) in place of auto"
        )
    else:
        raise ValueError(refusal(job.run.folder, origins, now))


def foreign(work: Work, commits: Commits, now: Origin) -> list[Origin]:
    """Return the origins, other than `now`, of the counting commits of all jobs of a run."""
    return others((Origin.of(each.details) for each in commits if _counts(work, each)), now)


def size_of(job: Job, work: Work) -> int:
    """Return the number of sequences in a batch; with `auto`, the maximum number."""
    return len(work.sequences) if job.auto_batch else job.batch_size


def _incomplete(job: Job, work: Work, commits: Commits) -> bool:
    """Return whether any job of the run has missing rows."""
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
