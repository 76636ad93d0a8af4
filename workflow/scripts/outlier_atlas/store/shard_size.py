"""Number of chunks in a file of an array, so that a store has few files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from outlier_atlas.store.layout import Layout, arrays_of

if TYPE_CHECKING:
    import zarr

MOST_FILES = 100_000
"""Number of chunks above which arrays are created with shards."""

MOST_CHUNKS = 128
"""Maximum number of chunks in a shard; a larger store has more files than `MOST_FILES`."""


def with_shards(layout: Layout) -> Layout:
    """Return a layout with the smallest shards that keep the number of files at `MOST_FILES`.

    A shard has 1, 2, 4, ... or 128 chunks of one layer of an array. So another sequence shard or
    layer group changes no file, and a growing run rarely changes the number.
    """
    rows = sum(len(arrays_of(target)) for target in layout.targets())
    count = 1
    while rows * -(-layout.chunks // count) > MOST_FILES and count < MOST_CHUNKS:
        count *= 2
    return replace(layout, shard_chunks=count)


def may_be_gathered(arrays: Iterable[zarr.Array[Any]]) -> bool:
    """Return whether the chunks of a store may be gathered in larger shards.

    A store is gathered when it grows above `MOST_FILES`. One that has more files, which an older
    version of the project wrote, keeps them: to copy it takes as long as to write it.
    """
    return sum(_files(array) for array in arrays) <= MOST_FILES


def _files(array: zarr.Array[Any]) -> int:
    tokens = (array.shards or array.chunks)[-2]
    rows = array.shape[0] if array.ndim > 2 else 1
    return rows * -(-array.shape[-2] // tokens)
