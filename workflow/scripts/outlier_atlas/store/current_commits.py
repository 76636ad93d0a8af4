"""Commits as far as they stand for what is configured now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from outlier_atlas.settings.sites import SITES
from outlier_atlas.store.commits import Commit, Rows, without
from outlier_atlas.store.fingerprints import Fingerprints
from outlier_atlas.store.layout import BOUNDARY, Layout, Target, arrays_of, has_layers
from outlier_atlas.store.target_chunks import DamagedChunkError, TargetChunks


def current(
    layout: Layout, kept: Mapping[str, Any], fingerprints: Fingerprints
) -> Callable[[Commit], Commit]:
    """Return a function that reduces a commit to what still counts as configured now.

    Args:
        layout: the layout of now.
        kept: the arrays that stay, by name.
        fingerprints: the fingerprints of now.
    """
    chunks = TargetChunks(kept, layout.chunk_tokens)
    wanted = set(layout.targets())

    def revised(commit: Commit) -> Commit:
        if not all(is_stored(target) or target.is_summary for target in commit.checksums):
            return commit  # of a rule that checks it itself
        rows = commit.rows

        def gone(target: Target) -> bool:
            if target.is_summary:
                return False
            if not all(name in kept for name in arrays_of(target)):
                return True
            # Older versions deleted boundaries that had been read, and kept their commits.
            return target.array == BOUNDARY and not chunks.exists(target, rows.chunk)

        there = without(commit, gone)
        stop = fingerprints.same_until(rows.start, rows.stop, commit.sequences)
        same = Rows(rows.chunk, rows.start, stop)
        # Where chunks had another size, rows are cut where none are cut now.
        if stop == rows.start or not there.checksums or not fingerprints.cut_here(same):
            return without(commit, lambda target: True)
        checksums = there.checksums
        if stop < rows.stop:
            checksums = _shortened(chunks, there, same, wanted)
        sequences = fingerprints.sequences(same.start, stop)
        return Commit(same, fingerprints.of(rows.chunk), checksums, sequences, commit.details)

    return revised


def _shortened(
    chunks: TargetChunks, commit: Commit, rows: Rows, wanted: set[Target]
) -> dict[Target, str]:
    """Return the checksums of the first rows of a commit; damaged chunks have none."""
    checksums = {}
    stored = {target for target in commit.checksums if not target.is_summary}
    for target in filter(chunks.has, wanted & stored):
        counted = [(commit.rows, commit.checksums[target])]
        try:
            values = chunks.checked(target, rows.chunk, counted)
        except DamagedChunkError:
            continue
        checksums[target] = chunks.sum_of(values, rows)
    return checksums


def is_stored(target: Target) -> bool:
    """Whether a target of a commit lies in the arrays."""
    return not has_layers(target) or target.array in SITES
