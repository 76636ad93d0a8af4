"""Summaries of measured sites that are not stored, computed on the device of their values."""

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
"""Maximum number of cached medians of sequences.

The tiles of a batch arrive close together. A median that was dropped is recomputed.
"""


@dataclass
class SummaryWriter:
    """A writer of summaries, which accepts tiles and writes the summaries of complete rows.

    Attributes:
        run: the files of the run.
        work: the work of the job.
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
        """Summarize a tile, and return whether its rows are complete and written.

        Args:
            target: target of the summary.
            rows: rows that contain the tile.
            start: index of the first token of the tile.
            values: values of the tile on any device, (token, channel).
            whole_sequence: values of the whole sequence of the tile.
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
        """Return the checksums of written summaries for their commit, and forget them."""
        return {target: self._written.pop((rows, target)) for target in targets}

    def _median(self, target: Target, sequence: int, whole: torch.Tensor, together: int) -> float:
        """Return the median of |x| of a sequence, computed once for all of its tiles.

        Args:
            target: target of the summary.
            sequence: index of the sequence.
            whole: values of the whole sequence.
            together: number of tokens to process at a time.
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
