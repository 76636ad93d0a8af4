"""Summaries of the sites that are measured and not stored, made where their values are."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from outlier_atlas.extraction.work import Work
from outlier_atlas.statistics.medians import needs_median, sequence_median
from outlier_atlas.statistics.summary import Summary, TileRange
from outlier_atlas.statistics.tiles import AnySummary, summary_of
from outlier_atlas.store.commits import Rows
from outlier_atlas.store.layout import Target
from outlier_atlas.store.run_files import RunFiles
from outlier_atlas.store.summaries import path_of, write

MEDIANS = 1024
"""Medians of sequences that are kept for the tiles to come: those of a batch come close together,
and one that is gone is computed again."""


@dataclass
class SummaryWriter:
    """Takes tiles as they are computed, and writes the summaries of rows that are complete.

    Attributes:
        run: the files of the run.
        work: of the job.
    """

    run: RunFiles
    work: Work
    _tiles: dict[tuple[Rows, Target], list[AnySummary]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _written: dict[tuple[Rows, Target], str] = field(default_factory=dict)
    _medians: dict[tuple[Target, int], float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(
        self,
        target: Target,
        rows: Rows,
        start: int,
        values: torch.Tensor,
        whole_sequence: torch.Tensor,
    ) -> bool:
        """Summarize a tile of some rows; return whether they are complete now, and written.

        Args:
            target: a summary.
            rows: those that the tile lies in.
            start: index of its first token.
            values: (token, channel), on any device.
            whole_sequence: the values of all of its sequence.
        """
        layout, starts = self.work.layout, self.work.tokens.sequence_starts
        sequence = int(np.searchsorted(starts, start, side="right")) - 1
        floor = float(np.float32(layout.floor(target.site)))
        place = TileRange(sequence, start, len(values))
        summary = summary_of(target.site, values, place, floor, layout.experts)
        if isinstance(summary, Summary) and needs_median(summary):
            median = self._median(target, sequence, whole_sequence, len(values))
            summary = replace(summary, sequence_median=median)
        with self._lock:
            tiles = self._tiles[rows, target]
            tiles.append(summary)
            if sum(tile.tokens for tile in tiles) < rows.stop - rows.start:
                return False
            del self._tiles[rows, target]
        self._write(target, rows, tiles)
        return True

    def written(self, rows: Rows, targets: Iterable[Target]) -> dict[Target, str]:
        """Return, once, the checksums of summaries that were written here, for their commit."""
        return {target: self._written.pop((rows, target)) for target in targets}

    def _median(self, target: Target, sequence: int, whole: torch.Tensor, together: int) -> float:
        """Return the median of a sequence's |x|, computed once for all of its tiles.

        Args:
            together: the number of tokens that are taken at a time.
        """
        with self._lock:
            known = self._medians.get((target, sequence))
        if known is None:
            known = sequence_median(torch.split(whole, together))
            with self._lock:
                if len(self._medians) == MEDIANS:
                    self._medians.clear()
                self._medians[target, sequence] = known
        return known

    def _write(self, target: Target, rows: Rows, tiles: Sequence[AnySummary]) -> None:
        ordered = sorted(tiles, key=lambda tile: tile.start)
        path, fingerprint = path_of(self.run, target, rows), self.work.fingerprints.summary(rows)
        self._written[rows, target] = write(path, fingerprint, ordered)
