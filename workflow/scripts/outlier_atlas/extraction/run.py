"""The extraction job, which checks for missing rows before it imports or loads anything.

torch and zarr take seconds to import, so they are imported only if rows are missing.
"""

from __future__ import annotations

import logging

from outlier_atlas.extraction.job import Job
from outlier_atlas.extraction.versions import settle, size_of
from outlier_atlas.extraction.work import Work
from outlier_atlas.files import fingerprint, write_record
from outlier_atlas.phases import OTHER, note, phase

log = logging.getLogger(__name__)


@phase(OTHER)
def extract(job: Job) -> None:
    """Compute and commit the missing rows; without missing rows, no model is loaded.

    Raises:
        ValueError: the model, the tokens or the store differ from their records; or new rows would
            be computed with other versions, and `execution.on_new_versions` refuses that.
        OSError: a file cannot be read or written.
    """
    work = Work.of(job.run, job.group, job.shard)
    commits = settle(job, work, job.run.commits())
    missing = bool(work.missing(commits, size_of(job, work)))
    if missing:
        _compute(job, work)
    else:
        note(idle=True)
        log.info("layers %s: all committed already, nothing to compute", work.span)
    if missing or work.layout.shard_chunks > 1:
        job.run.put_shards_in_order((target, work.chunks) for target in work.stored)
    _delete_read(job, work, size_of(job, work))
    write_record(job.manifest, manifest(work))


def _compute(job: Job, work: Work) -> None:
    from outlier_atlas.extraction.compute import compute

    compute(job, work)


def _delete_read(job: Job, work: Work, batch_size: int) -> None:
    if work.group and work.layout.passing_boundaries:
        from outlier_atlas.extraction.boundary_cleanup import delete_read

        delete_read(job.run, work, batch_size)


def manifest(work: Work) -> dict[str, object]:
    """Return the manifest of a job.

    The manifest has no time or machine, so equal work gives equal bytes.
    """
    layers = work.layout.group_layers(work.group)
    return {
        "layers": [layers[0], layers[-1]],
        "sequences": [work.sequences.start, work.sequences.stop - 1],
        "sites": list(work.layout.sites),
        "fingerprint": fingerprint([work.fingerprint(rows.chunk) for rows in work.rows]),
    }
