"""Boundaries of a run that stores no values: each goes when the next layer group has read it."""

from __future__ import annotations

from pathlib import Path

from outlier_atlas.extraction.work import Work
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.commits import COMMITS, Commits
from outlier_atlas.store.rows import rows_of_chunk


def delete_read(run: Path, work: Work) -> None:
    """Delete the boundary before a layer group, all of whose own rows are committed.

    Of a chunk that it shares with another sequence shard the last one of them to end does so: each
    has committed its rows before it looks.
    """
    layout, group = work.layout, work.group
    before = layout.boundary_after(group - 1) if group else None
    if before is None or not layout.passing_boundaries:
        return
    after = layout.boundary_after(group)
    targets = [*layout.measured(group), *([after] if after else [])]
    commits, arrays = Commits.load(run / COMMITS), Arrays(run, layout)
    for chunk in dict.fromkeys(rows.chunk for rows in work.rows):
        others = rows_of_chunk(layout, work.tokens.sequence_starts, chunk)
        if not any(
            commits.missing(targets, rows, work.fingerprint(chunk))
            for rows in others
            if rows not in work.rows
        ):
            arrays.delete_boundary(before, chunk)
