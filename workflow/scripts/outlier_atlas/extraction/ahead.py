"""Further sequence shards of a loaded layer group, computed before their own jobs begin.

Loading a layer group, and importing what loads it, can take longer than a sequence shard.
Therefore a job that has computed its shard goes on with shards that no other process works on. Each
shard is written and committed as its own job would do it, so a kill costs no more, and its own job
finds nothing missing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from outlier_atlas.extraction.job import Job
from outlier_atlas.extraction.stream import destinations_of
from outlier_atlas.extraction.work import Work
from outlier_atlas.files import described
from outlier_atlas.locks import LOCKS, lock_if_free
from outlier_atlas.store.commits import Rows
from outlier_atlas.store.layout import Target

log = logging.getLogger(__name__)

Missing = Mapping[Rows, frozenset[Target]]


def compute_others(
    job: Job, work: Work, loaded: Missing, compute: Callable[[Job, Work, Missing], None]
) -> None:
    """Compute the other sequence shards of a job's layer group that can be computed now.

    Errors are left to the job of the shard, which meets them again.

    Args:
        job: the job, whose own shard is committed.
        work: the work of the job.
        loaded: rows and targets for which the layer group was loaded.
        compute: computes and commits the missing rows of a job.
    """
    commits = job.run.commits()
    for other, its_work in _others(job, work):
        # Commits are read again only for a shard that may have something to compute.
        if not its_work.missing(commits, job.batch_size):
            continue
        with lock_if_free(_lock(other)) as free:
            if not free:
                continue
            commits = job.run.commits()
            missing = its_work.missing(commits, job.batch_size)
            if not missing or destinations_of(missing).keys() - destinations_of(loaded).keys():
                continue
            if its_work.unfounded(commits, job.batch_size):
                continue
            log.info("layers %s: going on with sequence shard %d", work.span, other.shard)
            try:
                compute(other, its_work, missing)
            except (ValueError, OSError, RuntimeError, MemoryError) as error:
                log.info(
                    "sequence shard %d is left to its own job: %s", other.shard, described(error)
                )
                return


def _others(job: Job, work: Work) -> Iterator[tuple[Job, Work]]:
    """Yield the other shards of a layer group, the last ones first.

    Snakemake starts jobs from the first shard on. A job that begins on another device should find a
    shard that no other job computes.
    """
    for shard in reversed(range(work.layout.sequence_shards)):
        if shard == job.shard:
            continue
        name = re.sub(r"\bshard-\d+", f"shard-{shard}", job.manifest.name)
        other = replace(job, shard=shard, manifest=job.manifest.with_name(name))
        yield other, replace(work, shard=shard)


def _lock(job: Job) -> Path:
    """Return the path of the lock that the job's own process takes."""
    return job.run.folder / LOCKS / f"extract_activations.{job.manifest.stem}"
