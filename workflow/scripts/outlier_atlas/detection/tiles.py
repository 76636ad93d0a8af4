"""Where detection has its summaries from: files, or the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.detection.exclusion import Exclusion
from outlier_atlas.statistics.summary import Place, Summary
from outlier_atlas.statistics.tiles import AnySummary, kind_of, summary_of
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.commits import Rows
from outlier_atlas.store.fingerprints import Fingerprints
from outlier_atlas.store.layout import Layout, Target
from outlier_atlas.store.rows import rows_of_chunk, tiles
from outlier_atlas.store.summaries import (
    DamagedSummaryError,
    LostSummaryError,
    path_of,
    read,
    write,
)

Tiles = list[AnySummary]


@dataclass(frozen=True)
class Source:
    """The summaries of a run.

    Of a stored site they are made from its values where no current one is there, and kept.

    Attributes:
        run: folder of the run.
        layout: of its store.
        tokens: its token store.
        fingerprints: of its chunks.
        exclusion: the tokens that are left out.
        floors: of each site the least |x| that must be known with its place.
    """

    run: Path
    layout: Layout
    tokens: TokenStore
    fingerprints: Fingerprints
    exclusion: Exclusion
    floors: Mapping[str, float]

    def all(self, threads: int) -> Iterator[tuple[int, Target, Tiles]]:
        """Chunk by chunk, and all sites and layers of a chunk together: the tiles of each.

        A few are read ahead while one is looked at: memory is a chunk for each thread.

        Raises:
            DamagedChunkError: a chunk is damaged or missing.
            LostSummaryError: the summary of a site that is not stored is.
        """
        arrays = Arrays(self.run, self.layout)
        targets = [
            self.layout.target(site, layer)
            for site in self.layout.sites
            for layer in self.layout.layers
        ]
        order = [(chunk, target) for chunk in range(self.layout.chunks) for target in targets]
        with ThreadPoolExecutor(threads) as readers:
            ahead = [readers.submit(self._of, arrays, *place) for place in order[: 2 * threads]]
            for index, (chunk, target) in enumerate(order):
                found = ahead.pop(0).result()
                following = order[index + 2 * threads :][:1]
                ahead += [readers.submit(self._of, arrays, *place) for place in following]
                yield chunk, target, found

    def _of(self, arrays: Arrays, chunk: int, target: Target) -> Tiles:
        if target.is_summary:
            return self._kept(chunk, target)
        rows = Rows(chunk, *self.layout.chunk_range(chunk))
        path = path_of(self.run, target, rows)
        fingerprint = self.fingerprints.summary(rows, self.exclusion.record())
        try:
            found = self._read(path, target.site, fingerprint)
            if not self._too_high(found, target.site):
                return found
        except DamagedSummaryError:
            pass
        found = self._made(arrays, rows, target)
        write(path, fingerprint, found)
        return found

    def _kept(self, chunk: int, target: Target) -> Tiles:
        """What extraction has left of a site that is not stored."""
        found: Tiles = []
        for rows in rows_of_chunk(self.layout, self.tokens.sequence_starts, chunk):
            path = path_of(self.run, target, rows)
            try:
                found += self._read(path, target.site, self.fingerprints.summary(rows))
            except DamagedSummaryError as error:
                raise LostSummaryError(target, chunk, error) from error
        return found

    def _read(self, path: Path, site: str, fingerprint: str) -> Tiles:
        return read(path, kind_of(site), fingerprint)

    def _too_high(self, found: Tiles, site: str) -> bool:
        return any(isinstance(s, Summary) and s.floor > self.floors[site] for s in found)

    def _made(self, arrays: Arrays, rows: Rows, target: Target) -> Tiles:
        values = torch.from_numpy(arrays.read(target, rows.start, rows.stop))
        starts, site = self.tokens.sequence_starts, target.site
        floor, experts = self.floors[site], self.layout.experts
        made = []
        for sequence, start, stop in tiles(starts, rows):
            kept = self.exclusion.kept(self.tokens, int(starts[sequence]), start, stop)
            part = values[start - rows.start : stop - rows.start]
            place = Place(sequence, start, stop - start)
            made.append(summary_of(site, part, place, floor, experts, kept))
        return made
