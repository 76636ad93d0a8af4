"""Reduction of commits to the rows and targets of the current configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlier_atlas.settings.sites import SITES
from outlier_atlas.store.commits import Commit, Rows, without
from outlier_atlas.store.fingerprints import Fingerprints
from outlier_atlas.store.layout import BOUNDARY, Layout, Target, arrays_of, has_layers
from outlier_atlas.store.target_chunks import DamagedChunkError, TargetChunks


class CurrentCommits:
    """The current configuration, to which commits are reduced.

    Args:
        layout: the current layout.
        kept: arrays that stay, by name, before their shape changes.
        fingerprints: the current fingerprints.
    """

    def __init__(self, layout: Layout, kept: Mapping[str, Any], fingerprints: Fingerprints) -> None:
        self._kept, self._fingerprints = kept, fingerprints
        self._chunks = TargetChunks(kept, layout.chunk_tokens)
        self._wanted = set(layout.targets())

    def reduced(self, commit: Commit) -> Commit:
        """Return a commit reduced to the rows and targets that still count, possibly none."""
        if not all(is_stored(target) or target.is_summary for target in commit.checksums):
            return commit  # the rule of such a target checks it
        rows, fingerprints = commit.rows, self._fingerprints
        remaining = without(commit, lambda target: self._is_gone(target, rows.chunk))
        stop = fingerprints.same_until(rows.start, rows.stop, commit.sequences)
        same = Rows(rows.chunk, rows.start, stop)
        # If the chunk size has changed, rows may end where the current chunks do not.
        if stop == rows.start or not remaining.checksums or not fingerprints.cut_here(same):
            return without(commit, lambda target: True)
        checksums = remaining.checksums if stop == rows.stop else self._shortened(remaining, same)
        sequences = fingerprints.sequences(same.start, stop)
        return Commit(same, fingerprints.of(rows.chunk), checksums, sequences, commit.details)

    def _is_gone(self, target: Target, chunk: int) -> bool:
        if target.is_summary:
            return False
        if not all(name in self._kept for name in arrays_of(target)):
            return True
        # Older versions deleted boundaries after reading, but kept their commits.
        return target.array == BOUNDARY and not self._chunks.exists(target, chunk)

    def _shortened(self, commit: Commit, rows: Rows) -> dict[Target, str]:
        """Return the checksums of the first rows of a commit, without damaged chunks."""
        checksums = {}
        stored = {target for target in commit.checksums if not target.is_summary}
        for target in filter(self._chunks.has, self._wanted & stored):
            counted = [(commit.rows, commit.checksums[target])]
            try:
                values = self._chunks.checked(target, rows.chunk, counted)
            except DamagedChunkError:
                continue
            checksums[target] = self._chunks.sum_of(values, rows)
        return checksums


def is_stored(target: Target) -> bool:
    """Return whether the arrays contain a target of a commit."""
    return not has_layers(target) or target.array in SITES
