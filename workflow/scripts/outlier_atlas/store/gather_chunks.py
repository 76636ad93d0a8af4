"""Conversion of an array to larger shards when its run grows; chunks keep their bytes.

The new files are written to a folder in the array's folder, whose name has the size of the shards.
It replaces the chunks of the array after the metadata was changed. So the next call completes a
conversion that a kill interrupted.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zarr

from outlier_atlas.files import DamagedFileError, replacing, write_whole
from outlier_atlas.store.chunks import shard_chunks
from outlier_atlas.store.metadata import METADATA_FILE
from outlier_atlas.store.move_chunks import ASIDE, folder_of
from outlier_atlas.store.shards import Shard

CHUNKS = "c"
"""Folder of an array's chunks."""

GATHERED = "gathered-"
"""Beginning of the name of the folder with the new files; its end is the size of the shards."""


def gather(array: zarr.Array[Any], wanted: int) -> None:
    """Give an array shards of so many chunks, unless it has larger ones.

    The array has to be opened again afterwards. While it is converted, no job may use it.

    Args:
        array: the array.
        wanted: number of chunks in a shard; 1 only completes an interrupted conversion.
    """
    folder, current = folder_of(array), shard_chunks(array)
    for path in folder.glob(f"{GATHERED}*"):
        wanted = int(path.name.removeprefix(GATHERED))
    new = folder / f"{GATHERED}{wanted}"
    if current < wanted:
        for source in _token_axes(folder, array.ndim):
            _gather(source, new / source.relative_to(folder), (current, wanted), folder)
        new.mkdir(exist_ok=True)
        _set_shards(folder / METADATA_FILE, array, wanted)
    if new.is_dir():
        for part in new.iterdir():
            shutil.rmtree(folder / part.name, ignore_errors=True)
            part.rename(folder / part.name)
        new.rmdir()


def _token_axes(folder: Path, dimensions: int) -> Iterator[Path]:
    """Yield the folders that have a folder for each file along the token axis."""
    if dimensions == 2:
        yield folder / CHUNKS
    else:
        yield from (path for part in (CHUNKS, ASIDE) for path in sorted(folder.glob(f"{part}/*")))


def _gather(source: Path, target: Path, sizes: tuple[int, int], folder: Path) -> None:
    """Write the new shards of one layer, and remove the files with the same chunks."""
    current, wanted = sizes
    files: dict[int, list[int]] = defaultdict(list)
    for path in source.glob("*/0"):
        files[int(path.parent.name) * current // wanted].append(int(path.parent.name))
    for shard, numbers in files.items():
        path = target / str(shard) / "0"
        paths = {number: source / str(number) / "0" for number in sorted(numbers)}
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, folder) as temporary:
                new = Shard(temporary, wanted)
                for number, old in paths.items():
                    for slot, data in _chunks(old, current):
                        new.write((number * current + slot) % wanted, [data])
        for old in paths.values():
            old.unlink()


def _chunks(path: Path, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield the chunks of a file, as they are; a chunk without its index is lost."""
    if size == 1:
        yield 0, path.read_bytes()
        return
    shard = Shard(path, size)
    for slot in range(size):
        try:
            yield slot, b"".join(shard.read(slot, 0))
        except DamagedFileError:
            continue


def _set_shards(path: Path, array: zarr.Array[Any], wanted: int) -> None:
    """Change the metadata of an array to shards of so many chunks."""
    metadata: dict[str, Any] = json.loads(path.read_text("utf-8"))
    *before, tokens, last = array.chunks
    metadata["chunk_grid"]["configuration"]["chunk_shape"] = [*before, tokens * wanted, last]
    if metadata["codecs"][0]["name"] != "sharding_indexed":
        configuration = {
            "chunk_shape": list(array.chunks),
            "codecs": metadata["codecs"],
            "index_codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "crc32c"},
            ],
            "index_location": "start",
        }
        metadata["codecs"] = [{"name": "sharding_indexed", "configuration": configuration}]
    write_whole(path, json.dumps(metadata, indent=2).encode())
