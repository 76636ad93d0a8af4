"""Summaries of the sites that are measured and not stored, made where their values are."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from outlier_atlas.extraction.work import Work
from outlier_atlas.statistics.summary import Place
from outlier_atlas.statistics.tiles import AnySummary, summary_of
from outlier_atlas.store.commits import Rows
from outlier_atlas.store.layout import Target
from outlier_atlas.store.summaries import path_of, write


@dataclass
class SummaryWriter:
    """Takes tiles as they are computed, and writes the summaries of rows that are complete.

    Attributes:
        run: folder of the run.
        work: of the job.
    """

    run: Path
    work: Work
    _tiles: dict[tuple[Rows, Target], list[AnySummary]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, target: Target, rows: Rows, start: int, values: torch.Tensor) -> bool:
        """Summarize a tile of some rows; whether they are complete now, and written.

        Args:
            target: a summary.
            rows: those that the tile lies in.
            start: index of its first token.
            values: (token, channel), on any device.
        """
        layout, starts = self.work.layout, self.work.tokens.sequence_starts
        sequence = int(np.searchsorted(starts, start, side="right")) - 1
        floor = float(np.float32(layout.floor(target.site)))
        place = Place(sequence, start, len(values))
        summary = summary_of(target.site, values, place, floor, layout.experts)
        with self._lock:
            tiles = self._tiles[rows, target]
            tiles.append(summary)
            if sum(tile.tokens for tile in tiles) < rows.stop - rows.start:
                return False
            del self._tiles[rows, target]
        self._write(target, rows, tiles)
        return True

    def _write(self, target: Target, rows: Rows, tiles: Sequence[AnySummary]) -> None:
        ordered = sorted(tiles, key=lambda tile: tile.start)
        write(path_of(self.run, target, rows), self.work.fingerprints.summary(rows), ordered)
