"""Summaries for detection, read from files or computed from the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.criteria.exclusion import Exclusion
from outlier_atlas.criteria.quantization_error.settings import QuantizationErrorSettings
from outlier_atlas.phases import COMPUTE, count, phase
from outlier_atlas.settings.sites import ATTN_SINK
from outlier_atlas.statistics.experts import ExpertSummary
from outlier_atlas.statistics.medians import needs_median, sequence_median
from outlier_atlas.statistics.quantization import (
    ERRORS_VERSION,
    QuantizationSummary,
    summarize_quantization,
)
from outlier_atlas.statistics.sequences import ValuesOf
from outlier_atlas.statistics.summary import Summary, TileRange
from outlier_atlas.statistics.tiles import AnySummary, kind_of, summary_of
from outlier_atlas.store.arrays import Arrays, Float32
from outlier_atlas.store.commits import Commits, Rows
from outlier_atlas.store.layout import Target
from outlier_atlas.store.run import Run
from outlier_atlas.store.summaries import DamagedSummaryError, path_of, read, write
from outlier_atlas.store.token_axis import tiles

TOGETHER = 4
"""Number of chunks that a thread processes before it returns results, to save switches."""

Chunk = Callable[[], Float32]
"""A function that reads a chunk at its first call."""
Kept = NDArray[np.bool_] | None
Computed = TypeVar("Computed")


@dataclass(frozen=True)
class ChunkSummaries:
    """The summaries of a chunk of one site and layer, tile by tile.

    `quantization` is empty if quantization errors are not needed.
    """

    tiles: list[AnySummary]
    quantization: list[QuantizationSummary] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """The summaries of a run.

    A missing or outdated summary of a stored site is computed from the values and written.

    Attributes:
        run: the run.
        commits: the commits that count.
        arrays: the arrays of the store.
        exclusion: the tokens that are excluded.
        floors: smallest |x| whose place must be known, by site.
        quantization: settings of the quantization errors.
    """

    run: Run
    commits: Commits
    arrays: Arrays
    exclusion: Exclusion
    floors: Mapping[str, float]
    quantization: QuantizationErrorSettings

    def all(self, threads: int) -> Iterator[tuple[int, Target, ChunkSummaries]]:
        """Yield the tiles of each site and layer, chunk by chunk.

        Tiles are read ahead. Memory is one chunk and twice `TOGETHER` summaries for each thread.

        Raises:
            DamagedChunkError: a chunk is damaged or missing.
            LostSummaryError: the summary of a site that is not stored is damaged or missing.
        """
        arrays = self.arrays
        targets = [
            self.run.layout.target(site, layer)
            for site in self.run.layout.sites
            if site != ATTN_SINK
            for layer in self.run.layout.layers
        ]
        order = [(chunk, target) for chunk in range(self.run.layout.chunks) for target in targets]
        tasks = [order[start : start + TOGETHER] for start in range(0, len(order), TOGETHER)]
        with ThreadPoolExecutor(threads) as readers:
            ahead = [readers.submit(self._of_each, arrays, task) for task in tasks[: 2 * threads]]
            for index, task in enumerate(tasks):
                results = ahead.pop(0).result()
                following = tasks[index + 2 * threads :][:1]
                ahead += [readers.submit(self._of_each, arrays, task) for task in following]
                for (chunk, target), summaries in zip(task, results, strict=True):
                    yield chunk, target, summaries

    def values_of(self, site: str, layer: int) -> ValuesOf | None:
        """Return a function that reads the values of a tile again, for the tokens that count.

        The result is None if the site is not stored.
        """
        target = self.run.layout.target(site, layer)
        if target.is_summary:
            return None

        def read(tile: Summary) -> Float32:
            return self.arrays.read(target, tile.start, tile.stop)[tile.token]

        return read

    @phase(COMPUTE)
    def _of_each(
        self, arrays: Arrays, places: Sequence[tuple[int, Target]]
    ) -> list[ChunkSummaries]:
        return [self._of(arrays, *place) for place in places]

    def _of(self, arrays: Arrays, chunk: int, target: Target) -> ChunkSummaries:
        if target.is_summary:
            kind = kind_of(target.site)
            return ChunkSummaries(self.run.committed_summaries(self.commits, target, chunk, kind))
        rows = Rows(chunk, *self.run.layout.chunk_range(chunk))
        values = cache(lambda: arrays.read(target, rows.start, rows.stop))
        summaries = ChunkSummaries(self._summaries(rows, target, values))
        if target.site in self.quantization.sites:
            summaries = replace(summaries, quantization=self._quantization(rows, target, values))
        return summaries

    def _summaries(self, rows: Rows, target: Target, values: Chunk) -> list[AnySummary]:
        floor, experts = self.floors[target.site], self.run.layout.experts

        starts = self.run.tokens.sequence_starts

        def make(part: Float32, place: TileRange, kept: Kept) -> AnySummary:
            summary = summary_of(target.site, part, place, floor, experts, kept)
            first, stop = starts[place.sequence : place.sequence + 2]
            whole = place.tokens == stop - first
            if whole and isinstance(summary, Summary) and needs_median(summary):
                median = sequence_median([part[summary.token.astype(np.int64)]])
                summary = replace(summary, sequence_median=median)
            return summary

        path = path_of(self.run, target, rows)
        fingerprint = self._fingerprint(rows, target)
        with suppress(DamagedSummaryError):
            summaries = read(path, kind_of(target.site), fingerprint)
            if all(isinstance(s, ExpertSummary) or s.floor <= floor for s in summaries):
                return summaries
        return self._make(rows, values, make, path, fingerprint)

    def _quantization(self, rows: Rows, target: Target, values: Chunk) -> list[QuantizationSummary]:
        threshold = self.quantization.threshold

        def make(part: Float32, place: TileRange, kept: Kept) -> QuantizationSummary:
            return summarize_quantization(part, place, threshold, kept)

        path = path_of(self.run, target, rows, "-quantization")
        fingerprint = self._fingerprint(
            rows, target, outlier_channels=threshold, errors=ERRORS_VERSION
        )
        with suppress(DamagedSummaryError):
            return read(path, QuantizationSummary, fingerprint)
        return self._make(rows, values, make, path, fingerprint)

    def _fingerprint(self, rows: Rows, target: Target, **depends: float) -> str:
        """Return the fingerprint of a summary that is computed from stored values."""
        counted = self.run.fingerprints.counted(self.commits)
        made_from = [checksum for _, checksum in sorted(counted(target, rows.chunk))]
        left_out = {"left_out": self.exclusion.record()}
        return self.run.fingerprints.summary(rows, {"made_from": made_from, **left_out, **depends})

    def _make(
        self,
        rows: Rows,
        values: Chunk,
        make: Callable[[Float32, TileRange, Kept], Computed],
        path: Path,
        fingerprint: str,
    ) -> list[Computed]:
        """Compute a summary of each tile of some rows, and write them to a file."""
        starts, computed = self.run.tokens.sequence_starts, []
        for sequence, start, stop in tiles(starts, rows):
            kept = self.exclusion.kept(self.run.tokens, int(starts[sequence]), start, stop)
            part = values()[start - rows.start : stop - rows.start]
            count(summarized=part.size)
            computed.append(make(part, TileRange(sequence, start, stop - start), kept))
        write(path, fingerprint, computed)
        return computed
