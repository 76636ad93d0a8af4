"""The work of an extraction job: missing rows, and the batches that compute them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.settings.extraction import even_ranges
from outlier_atlas.store.commits import Commits, Counted, Rows
from outlier_atlas.store.fingerprints import Fingerprints, sequences_of
from outlier_atlas.store.layout import Layout, Target
from outlier_atlas.store.run import Run
from outlier_atlas.store.token_axis import shard_rows


@dataclass(frozen=True)
class Work:
    """The part of a run that one job computes: a layer group over a sequence shard.

    Attributes:
        layout: layout of the store.
        tokens: the token store.
        model_fingerprint: fingerprint of the weights.
        group: index of the layer group.
        shard: index of the sequence shard.
    """

    layout: Layout
    tokens: TokenStore
    model_fingerprint: str
    group: int
    shard: int

    @classmethod
    def of(cls, run: Run, group: int, shard: int) -> Work:
        """Return the part of a run for a layer group and a sequence shard."""
        layout, model = run.layout, run.model_fingerprint
        return cls(layout, run.tokens, model, group, shard)

    @property
    def span(self) -> str:
        """The layers of the layer group, as text."""
        layers = self.layout.group_layers(self.group)
        return f"{layers[0]} to {layers[-1]}"

    @property
    def sequences(self) -> range:
        """The sequences of the shard."""
        shards = even_ranges(self.tokens.sequences, self.layout.sequence_shards)
        return range(*shards[self.shard])

    @cached_property
    def rows(self) -> list[Rows]:
        """The tokens of the shard, divided at chunk edges."""
        return shard_rows(self.layout, self.tokens.sequence_starts, self.shard)

    @property
    def chunks(self) -> range:
        """The chunks with tokens of the shard."""
        return range(self.rows[0].chunk, self.rows[-1].chunk + 1)

    @property
    def stored(self) -> list[Target]:
        """The targets in arrays that the job writes, with the boundary after the layer group."""
        after = self.layout.boundary_after(self.group)
        stored = [each for each in self.layout.measured(self.group) if not each.is_summary]
        return [*stored, *([after] if after else [])]

    @cached_property
    def fingerprints(self) -> Fingerprints:
        """The fingerprints of the chunks."""
        tokens = self.tokens
        return Fingerprints(
            self.layout, tokens.token_ids, tokens.sequence_starts, self.model_fingerprint
        )

    def counted(self, commits: Commits) -> Counted:
        """Return a function that returns the commits that data must match."""
        return self.fingerprints.counted(commits)

    def fingerprint(self, chunk: int) -> str:
        """Return the fingerprint of a chunk."""
        return self.fingerprints.of(chunk)

    def missing(self, commits: Commits, batch_size: int) -> dict[Rows, frozenset[Target]]:
        """Return the rows to write, with their targets.

        The boundary after the layer group is written only if a later layer group needs it.
        """
        return self._to_run(self.group, commits, batch_size)

    @property
    def boundary_before(self) -> Target | None:
        """The boundary that this layer group reads; None for the first layer group."""
        return self.layout.boundary_after(self.group - 1) if self.group else None

    def read(self, commits: Commits, batch_size: int) -> frozenset[Rows]:
        """Return the rows of the boundary that this layer group still has to read."""
        return self._rows_of(self.batches(self.missing(commits, batch_size), batch_size))

    def unfounded(self, commits: Commits, batch_size: int) -> frozenset[Rows]:
        """Return the rows of the boundary that this layer group must read but that do not count."""
        before = self.boundary_before
        if before is None:
            return frozenset()
        return frozenset(
            rows
            for rows in self.read(commits, batch_size)
            if commits.missing([before], rows, self.fingerprint(rows.chunk))
        )

    def _to_run(
        self, group: int, commits: Commits, batch_size: int
    ) -> dict[Rows, frozenset[Target]]:
        boundary = self.layout.boundary_after(group)
        needed: frozenset[Rows] = frozenset()
        if boundary:
            # A layer group reads whole batches of its boundary.
            later = self._to_run(group + 1, commits, batch_size)
            needed = self._rows_of(self.batches(later, batch_size))
        to_run: dict[Rows, frozenset[Target]] = {}
        for rows in self.rows:
            targets = [*self.layout.measured(group)]
            if boundary and rows in needed:
                targets.append(boundary)
            to_run |= self._lacking(commits, rows, targets)
        return to_run

    def _lacking(
        self, commits: Commits, rows: Rows, targets: Iterable[Target]
    ) -> dict[Rows, frozenset[Target]]:
        """Return disjoint parts of a chunk's rows that targets lack, with these targets."""
        current = self.fingerprint(rows.chunk)
        gaps = {target: commits.gaps(target, rows, current) for target in targets}
        all_gaps = [gap for of_target in gaps.values() for gap in of_target]
        cuts = sorted({edge for gap in all_gaps for edge in (gap.start, gap.stop)})
        lacking = {}
        for start, stop in pairwise(cuts):
            without = {
                target
                for target, of_target in gaps.items()
                if any(gap.start <= start and stop <= gap.stop for gap in of_target)
            }
            if without:
                lacking[Rows(rows.chunk, start, stop)] = frozenset(without)
        return lacking

    def _rows_of(self, batches: Iterable[range]) -> frozenset[Rows]:
        """Return the rows that contain the tokens of batches."""
        starts, chunk = self.tokens.sequence_starts, self.layout.chunk_tokens
        first = self.rows[0].chunk
        return frozenset(
            self.rows[index - first]
            for batch in batches
            for index in range(
                int(starts[batch.start]) // chunk, (int(starts[batch.stop]) - 1) // chunk + 1
            )
        )

    def batches(self, missing: Iterable[Rows], size: int) -> list[range]:
        """Return the batches with sequences that overlap the missing rows.

        A batch contains up to `size` consecutive sequences of equal length, without padding.
        The division into batches does not depend on the missing rows, because the last bits of a
        mixture of experts depend on the batch.
        """
        needed = np.zeros(self.tokens.sequences + 1, bool)
        for rows in missing:
            reached = sequences_of(self.tokens.sequence_starts, rows.start, rows.stop)
            needed[reached.start : reached.stop] = True
        return [
            batch for batch in self._all_batches(size) if needed[batch.start : batch.stop].any()
        ]

    def _all_batches(self, size: int) -> Iterator[range]:
        lengths = np.diff(self.tokens.sequence_starts)
        start = self.sequences.start
        for sequence in self.sequences:
            full = sequence - start == size
            if full or lengths[sequence] != lengths[start]:
                yield range(start, sequence)
                start = sequence
        yield range(start, self.sequences.stop)
