"""Boundaries of a run that stores no values: each goes when the next layer group has read it."""

from __future__ import annotations

from dataclasses import replace

from outlier_atlas.extraction.work import Work
from outlier_atlas.store.commits import Commits
from outlier_atlas.store.run import Run
from outlier_atlas.store.token_axis import shards_of_chunk


def delete_read(run: Run, work: Work, batch_size: int) -> None:
    """Delete the boundary before a layer group, all of whose own rows are committed.

    Its commits go first: no commit stands for a chunk that was deleted on purpose, so what needs
    the boundary later finds it missing and has it computed again. A chunk that other sequence
    shards share is deleted by the last one of them to end: each has committed its rows before it
    looks.

    Args:
        batch_size: sequences in a forward pass; other sequence shards read whole batches, too.
    """
    before = work.boundary_before
    assert before is not None, "a later layer group has a boundary before it"
    still_read = _still_read(work, run.commits(), batch_size)
    run.delete_chunks(before, frozenset(rows.chunk for rows in work.rows) - still_read)


def _still_read(work: Work, commits: Commits, batch_size: int) -> frozenset[int]:
    """The chunks that other sequence shards have yet to read at the boundary."""
    starts = work.tokens.sequence_starts
    edges = (work.rows[0].chunk, work.rows[-1].chunk)
    sharing = {shard for chunk in edges for shard in shards_of_chunk(work.layout, starts, chunk)}
    others = (replace(work, shard=shard) for shard in sharing - {work.shard})
    return frozenset(rows.chunk for other in others for rows in other.read(commits, batch_size))
