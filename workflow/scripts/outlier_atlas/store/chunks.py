"""Whole chunks, written straight to their files.

zarr takes every chunk through its event loop and several copies: four times the CPU time of
compressing it, taken from the forward pass that runs beside it. A whole chunk needs none of that.
Its bytes are the compressed values and a checksum, and zarr reads what is written here.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from outlier_atlas.store.layout import Compression

LEVELS = {"lz4": 5, "zstd": 1}
"""Of each codec the level beyond which the chunks get slower and hardly smaller."""


def codecs(compression: Compression) -> list[Any]:
    """The codecs of an array as zarr names them: Blosc, and a checksum that makes any damage an
    error."""
    checksum = Crc32cCodec()
    if compression == "none":
        return [checksum]
    level = LEVELS[compression]
    return [
        BloscCodec(cname=compression, clevel=level, shuffle="bitshuffle", typesize=4),
        checksum,
    ]


def encode(values: NDArray[Any], compression: Compression) -> tuple[bytes, bytes]:
    """The bytes of a chunk as `codecs` make them of values of four bytes, C-contiguous and little
    endian, and their checksum, which follows them."""
    data = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    if compression == "none":
        encoded = data.tobytes()
    else:
        blosc = numcodecs.Blosc(compression, LEVELS[compression], numcodecs.Blosc.BITSHUFFLE)
        encoded = blosc.encode(data)
    return encoded, int(google_crc32c.value(encoded)).to_bytes(4, "little")


class ChunkFiles:
    """The files of an array's chunks, in a folder on this machine.

    Args:
        array: of a dtype of four bytes, created with `codecs(compression)`.
    """

    def __init__(self, array: zarr.Array[Any], compression: Compression) -> None:
        store: Any = array.store
        self._folder = Path(store.root) / array.path
        self._metadata: Any = array.metadata
        self._shape, self._dtype = array.chunks, array.dtype
        self._compression = compression

    def missing(self, coordinates: tuple[int, ...]) -> bool:
        """Whether a chunk has no file: zarr would read the fill value without a word."""
        return not self._path(coordinates).exists()

    def write(self, coordinates: tuple[int, ...], values: NDArray[np.float32]) -> None:
        """Write a chunk; a reader sees the one before, or this one.

        Args:
            coordinates: of the chunk, in chunks.
            values: of the chunk's shape, or shorter along an axis where the array ends; of
                whole numbers, where the array has such.
        """
        given = values.astype(self._dtype, copy=False)
        whole = np.reshape(given, (1,) * (len(self._shape) - values.ndim) + values.shape)
        missing = [(0, full - there) for full, there in zip(self._shape, whole.shape, strict=True)]
        if any(after for _, after in missing):
            whole = np.pad(whole, missing, constant_values=self._metadata.fill_value)
        path = self._path(coordinates)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
        parts = encode(whole, self._compression)
        try:
            _write(temporary, parts)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            size = sum(map(len, parts))
            said = f"{error.strerror}; {size:,} bytes were to be written"
            raise OSError(error.errno, said, str(path)) from error

    def delete(self, coordinates: tuple[int, ...]) -> None:
        """Delete a chunk, if it is there."""
        self._path(coordinates).unlink(missing_ok=True)

    def _path(self, coordinates: tuple[int, ...]) -> Path:
        return self._folder / str(self._metadata.encode_chunk_key(coordinates))


def _write(path: Path, parts: tuple[bytes, ...]) -> None:
    try:
        file = path.open("wb", buffering=0)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb", buffering=0)
    with file:
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[file.write(view) :]
