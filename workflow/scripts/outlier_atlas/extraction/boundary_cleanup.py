"""Deletion of boundaries after the next layer group, in a run that stores no values."""

from __future__ import annotations

from dataclasses import replace

from outlier_atlas.extraction.work import Work
from outlier_atlas.store.commits import Commits
from outlier_atlas.store.run import Run
from outlier_atlas.store.token_axis import shards_of_chunk


def delete_read(run: Run, work: Work, batch_size: int) -> None:
    """Delete the boundary before a layer group whose rows are all committed.

    The commits of the boundary are removed before its chunks. A job that needs the boundary later
    finds it missing and recomputes it. A chunk that several sequence shards share is deleted by the
    last of them to finish, because each commits its rows before it checks the other shards.

    Args:
        run: the run.
        work: the work of the job.
        batch_size: number of sequences in a forward pass. All sequence shards read whole batches.
    """
    before = work.boundary_before
    assert before is not None, "a later layer group has a boundary before it"
    still_read = _still_read(work, run.commits(), batch_size)
    run.delete_chunks(before, frozenset(rows.chunk for rows in work.rows) - still_read)


def _still_read(work: Work, commits: Commits, batch_size: int) -> frozenset[int]:
    """Return the chunks of the boundary that other sequence shards still have to read."""
    starts = work.tokens.sequence_starts
    edges = (work.rows[0].chunk, work.rows[-1].chunk)
    sharing = {shard for chunk in edges for shard in shards_of_chunk(work.layout, starts, chunk)}
    others = (replace(work, shard=shard) for shard in sharing - {work.shard})
    return frozenset(rows.chunk for other in others for rows in other.read(commits, batch_size))
