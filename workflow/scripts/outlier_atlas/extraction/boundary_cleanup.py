"""Deletion of boundaries in a run without stored values, after the next layer group read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from outlier_atlas.extraction.work import Work
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.commits import COMMITS, Commit, Commits, revise, without
from outlier_atlas.store.rows import shards_of_chunk


def delete_read(run: Path, work: Work, batch_size: int) -> None:
    """Delete the boundary before a layer group whose own rows are all committed.

    The commits are removed before the chunks. So no commit exists for a deleted chunk: a job that
    needs the boundary later finds it missing, and it is recomputed. The last sequence shard to
    finish deletes a chunk that several shards share, because each shard commits its rows before it
    checks.

    Args:
        run: folder of the run.
        work: the job of the layer group and sequence shard.
        batch_size: sequences in a forward pass; other sequence shards read whole batches, too.
    """
    boundary = work.boundary_before
    assert boundary is not None, "a later layer group has a boundary before it"
    commits = Commits.load(run / COMMITS)
    chunks = frozenset(rows.chunk for rows in work.rows) - _still_read(work, commits, batch_size)

    def without_chunks(commit: Commit) -> Commit:
        if commit.rows.chunk not in chunks:
            return commit
        return without(commit, lambda target: target == boundary)

    revise(run / COMMITS, without_chunks)
    arrays = Arrays(run, work.layout)
    for chunk in sorted(chunks):
        arrays.chunks.remove(boundary, chunk)


def _still_read(work: Work, commits: Commits, batch_size: int) -> frozenset[int]:
    """Return the chunks of the boundary that other sequence shards have yet to read."""
    starts = work.tokens.sequence_starts
    edges = (work.rows[0].chunk, work.rows[-1].chunk)
    sharing = {shard for chunk in edges for shard in shards_of_chunk(work.layout, starts, chunk)}
    others = (replace(work, shard=shard) for shard in sharing - {work.shard})
    return frozenset(rows.chunk for other in others for rows in other.read(commits, batch_size))
