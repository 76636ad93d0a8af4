"""One pass over the summaries of a run for all measures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from outlier_atlas.criteria.measure import Measures, Place, Taker
from outlier_atlas.detection.tiles import Source
from outlier_atlas.progress import progress

Takers = dict[Place, list[Taker]]


def scan(source: Source, measures: Measures, threads: int) -> None:
    """Pass all summaries to the measures, chunk by chunk.

    Memory is a few chunks and the accumulators, for any number of tokens.

    Raises:
        ValueError: the store or a summary is damaged.
    """
    tiles, quantization = _takers(measures, "tiles"), _takers(measures, "quantization")
    last = 0
    total = source.run.layout.chunks * len(tiles)
    with progress(total, " chunks", "detecting") as bar:
        for chunk, target, summarized in source.all(threads):
            if chunk != last:
                _end_chunk(measures)
            last = chunk
            place = target.site, target.layer
            _take(tiles[place], summarized.tiles)
            _take(quantization[place], summarized.quantization)
            bar.update()
    _end_chunk(measures)


def _takers(measures: Measures, summaries: str) -> Takers:
    """Return the functions that take summaries of a kind, by site and layer."""
    takers: Takers = defaultdict(list)
    for measure in measures:
        for place, take in measure.takers() if measure.summaries == summaries else ():
            takers[place].append(take)
    return takers


def _take(takers: list[Taker], summaries: Sequence[Any]) -> None:
    for summary in summaries:
        for take in takers:
            take(summary)


def _end_chunk(measures: Measures) -> None:
    for measure in measures:
        measure.end_chunk()
