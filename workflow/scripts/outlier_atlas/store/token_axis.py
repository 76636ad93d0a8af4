"""Division of the token axis into chunks, sequences and sequence shards."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.settings.extraction import even_ranges
from outlier_atlas.store.commits import Rows
from outlier_atlas.store.fingerprints import sequences_of
from outlier_atlas.store.layout import Layout


def shard_rows(layout: Layout, starts: NDArray[np.int64], shard: int) -> list[Rows]:
    """Return the tokens of a sequence shard, divided at chunk edges.

    Args:
        layout: the layout of the store.
        starts: index of the first token of each sequence, and the number of tokens.
        shard: index of the sequence shard.
    """
    first, last = even_ranges(len(starts) - 1, layout.sequence_shards)[shard]
    return _cut(layout, int(starts[first]), int(starts[last]))


def shards_of_chunk(layout: Layout, starts: NDArray[np.int64], chunk: int) -> Iterator[int]:
    """Yield the sequence shards that have tokens in a chunk."""
    start, stop = layout.chunk_range(chunk)
    shards = even_ranges(len(starts) - 1, layout.sequence_shards)
    for shard, (first, last) in enumerate(shards):
        if max(start, int(starts[first])) < min(stop, int(starts[last])):
            yield shard


def tiles(starts: NDArray[np.int64], rows: Rows) -> Iterator[tuple[int, int, int]]:
    """Yield the tiles of rows: sequence, first token, and the token after the last."""
    for sequence in sequences_of(starts, rows.start, rows.stop):
        first, stop = int(starts[sequence]), int(starts[sequence + 1])
        yield sequence, max(rows.start, first), min(rows.stop, stop)


def _cut(layout: Layout, first: int, last: int) -> list[Rows]:
    chunk = layout.chunk_tokens
    return [
        Rows(index, max(first, index * chunk), min(last, (index + 1) * chunk))
        for index in range(first // chunk, -(-last // chunk))
    ]
