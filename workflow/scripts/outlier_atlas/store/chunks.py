"""Files of chunks, written and read without zarr.

zarr passes every chunk through its event loop and copies it several times. This takes four times
the CPU time of the compression, which the forward pass needs. Here the bytes of a chunk are the
compressed values and a checksum, which zarr can read. A file holds one chunk, or is a shard of
several (`store/shards.py`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from outlier_atlas.files import DamagedFileError, write_unsynced
from outlier_atlas.phases import ENCODE, LOAD, phase
from outlier_atlas.store.layout import Compression
from outlier_atlas.store.shards import MissingChunkError, Shard

CHECKSUM_BYTES = 4
"""Length of the crc32c at the end of a chunk's file, which covers all bytes before it."""

LEVELS = {"lz4": 5, "zstd": 1}
"""Level of each codec; higher levels are slower and hardly compress more."""

BLOCKS = {"lz4": 0, "zstd": 2**19}
"""Bytes that a codec compresses at a time; 0 is Blosc's own choice.

Its choice for `zstd` at level 1 takes twice the time, and compresses less.
"""


def codecs(compression: Compression) -> list[Any]:
    """Return the zarr codecs of an array: Blosc, and a checksum that detects any damage."""
    checksum = Crc32cCodec()
    if compression == "none":
        return [checksum]
    level = LEVELS[compression]
    return [
        BloscCodec(
            cname=compression,
            clevel=level,
            shuffle="bitshuffle",
            typesize=4,
            blocksize=BLOCKS[compression],
        ),
        checksum,
    ]


@phase(ENCODE)
def encode(values: NDArray[Any], compression: Compression) -> tuple[bytes, bytes]:
    """Return the bytes of a chunk in the format of `codecs`, and the checksum that follows them.

    Values must have four bytes. They are encoded C-contiguous and little-endian.
    """
    data = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    if compression == "none":
        encoded = data.tobytes()
    else:
        level, block = LEVELS[compression], BLOCKS[compression]
        encoded = numcodecs.Blosc(compression, level, numcodecs.Blosc.BITSHUFFLE, block).encode(
            data
        )
    return encoded, int(google_crc32c.value(encoded)).to_bytes(4, "little")


def decode(
    encoded: bytes,
    compression: Compression,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    into: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Return the values of a chunk from its bytes without the checksum.

    Args:
        encoded: the bytes.
        compression: compression of the array.
        shape: shape of the chunk.
        dtype: dtype of the array.
        into: C-contiguous array of the dtype and as many values, to use instead of new memory.

    Raises:
        RuntimeError, ValueError: the bytes are not an output of `encode`.
    """
    values = np.empty(shape, dtype) if into is None else into.reshape(shape)
    if compression == "none":
        values[:] = np.frombuffer(encoded, dtype).reshape(shape)
        return values
    numcodecs.blosc.decompress(encoded, values)
    return values


def checksum(data: bytes) -> str:
    """Return the crc32c of data as eight hexadecimal digits, as in commit records."""
    return f"{google_crc32c.value(data):08x}"


def shard_chunks(array: zarr.Array[Any]) -> int:
    """Return the number of consecutive chunks of tokens in a file of an array; 1 without shards."""
    return array.shards[-2] // array.chunks[-2] if array.shards else 1


class ChunkFiles:
    """The files of an array's chunks, in a folder on this machine.

    Args:
        array: array with a dtype of four bytes, created with `codecs(compression)`.
        compression: compression of the array.

    Attributes:
        shard_chunks: number of consecutive chunks of tokens in a file; 1 without shards.
    """

    def __init__(self, array: zarr.Array[Any], compression: Compression) -> None:
        store: Any = array.store
        self._folder = Path(store.root) / array.path
        self._metadata: Any = array.metadata
        self._shape, self._dtype = array.chunks, array.dtype
        self._compression = compression
        self.shard_chunks = shard_chunks(array)
        self._chunks = -(-array.shape[-2] // array.chunks[-2])

    @phase(LOAD)
    def read(
        self, coordinates: tuple[int, ...], into: NDArray[Any] | None = None
    ) -> tuple[NDArray[Any], str]:
        """Return the values of a chunk in the chunk's shape, and the checksum of the stored bytes.

        Args:
            coordinates: index of the chunk along each axis.
            into: C-contiguous array for the values, to use instead of new memory.

        Raises:
            DamagedFileError: the file is missing or damaged.
        """
        encoded, stored = self._checked(coordinates)
        try:
            return decode(encoded, self._compression, self._shape, self._dtype, into), stored
        except (RuntimeError, ValueError) as error:
            raise DamagedFileError(self.path(coordinates), str(error)) from error

    def checksum(self, coordinates: tuple[int, ...]) -> str:
        """Return the stored checksum of a chunk, after comparing all bytes with it.

        Raises:
            DamagedFileError: the file is missing or damaged.
        """
        return self._checked(coordinates)[1]

    def exists(self, coordinates: tuple[int, ...]) -> bool:
        """Return whether a chunk was written."""
        shard, slot = self._place(coordinates)
        return shard.has(slot) if shard else self.path(coordinates).exists()

    def blank(self) -> NDArray[Any]:
        """Return the values of a chunk that was never written, which are the fill value."""
        return np.full(self._shape, self._metadata.fill_value, self._dtype)

    def remove(self, coordinates: tuple[int, ...]) -> range:
        """Remove a chunk, if it exists.

        Returns:
            The chunks of the token axis that are lost: all of a shard whose index is damaged.
        """
        shard, slot = self._place(coordinates)
        chunk = coordinates[-2]
        if shard is None:
            self.path(coordinates).unlink(missing_ok=True)
        elif shard.remove(slot):
            return range(chunk - slot, chunk - slot + self.shard_chunks)
        return range(chunk, chunk + 1)

    def write(self, coordinates: tuple[int, ...], values: NDArray[np.float32]) -> str:
        """Write a chunk; a reader sees the chunk before or after the write.

        Args:
            coordinates: index of the chunk along each axis.
            values: values in the chunk's shape, or shorter along an axis at the end of the array.
                They must be integers if the array has an integer dtype.

        Returns:
            The checksum of the stored bytes.

        Raises:
            DamagedFileError: the index of the shard is damaged.
        """
        given = values.astype(self._dtype, copy=False)
        whole = np.reshape(given, (1,) * (len(self._shape) - values.ndim) + values.shape)
        missing = [
            (0, full - length) for full, length in zip(self._shape, whole.shape, strict=True)
        ]
        if any(after for _, after in missing):
            whole = np.pad(whole, missing, constant_values=self._metadata.fill_value)
        parts = encode(whole, self._compression)
        shard, slot = self._place(coordinates)
        if shard:
            shard.write(slot, parts)
        else:
            # Temporary files are in the array's folder, the only one that `sweep` searches.
            write_unsynced(self.path(coordinates), parts, self._folder)
        return f"{int.from_bytes(parts[1], 'little'):08x}"

    def put_in_order(self, coordinates: tuple[int, ...]) -> None:
        """Make the bytes of a chunk's shard independent of the order of writing."""
        shard, slot = self._place(coordinates)
        if shard:
            shard.put_in_order(self._folder, self._chunks - (coordinates[-2] - slot))

    def path(self, coordinates: tuple[int, ...]) -> Path:
        """Return the file of a chunk."""
        *before, chunk, last = coordinates
        place = (*before, chunk // self.shard_chunks, last)
        return self._folder / str(self._metadata.encode_chunk_key(place))

    def _place(self, coordinates: tuple[int, ...]) -> tuple[Shard | None, int]:
        """Return the shard of a chunk, and the index of the chunk in it."""
        if self.shard_chunks == 1:
            return None, 0
        shard = Shard(self.path(coordinates), self.shard_chunks)
        return shard, coordinates[-2] % self.shard_chunks

    def _checked(self, coordinates: tuple[int, ...]) -> tuple[bytes, str]:
        """Return the bytes of a chunk without the checksum, and the checksum."""
        path = self.path(coordinates)
        shard, slot = self._place(coordinates)
        encoded, ending = shard.read(slot, CHECKSUM_BYTES) if shard else _read(path)
        stored = f"{int.from_bytes(ending, 'little'):08x}"
        if stored != checksum(encoded):
            raise DamagedFileError(path, "its checksum does not agree")
        return encoded, stored


def _read(path: Path) -> tuple[bytes, bytes]:
    """Return the bytes of a file with one chunk, without and with only the checksum."""
    try:
        with path.open("rb", buffering=0) as file:
            encoded = file.read(max(0, os.fstat(file.fileno()).st_size - CHECKSUM_BYTES))
            return encoded, file.read()
    except FileNotFoundError as error:
        raise MissingChunkError(path, "its file is missing") from error
