"""Files of chunks, written and read without zarr.

zarr passes every chunk through its event loop and copies it several times. This takes four times
the CPU time of the compression, which the forward pass needs. Here the bytes of a chunk are the
compressed values and a checksum, which zarr can read.
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

CHECKSUM_BYTES = 4
"""Length of the crc32c at the end of a chunk's file, which covers all bytes before it."""

LEVELS = {"lz4": 5, "zstd": 1}
"""Level of each codec; higher levels are slower and hardly compress more."""


def codecs(compression: Compression) -> list[Any]:
    """Return the zarr codecs of an array: Blosc, and a checksum that detects any damage."""
    checksum = Crc32cCodec()
    if compression == "none":
        return [checksum]
    level = LEVELS[compression]
    return [
        BloscCodec(cname=compression, clevel=level, shuffle="bitshuffle", typesize=4),
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
        blosc = numcodecs.Blosc(compression, LEVELS[compression], numcodecs.Blosc.BITSHUFFLE)
        encoded = blosc.encode(data)
    return encoded, int(google_crc32c.value(encoded)).to_bytes(4, "little")


def decode(
    encoded: bytes, compression: Compression, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return the values of a chunk from its bytes without the checksum.

    Raises:
        RuntimeError, ValueError: the bytes are not an output of `encode`.
    """
    if compression == "none":
        return np.frombuffer(encoded, dtype).reshape(shape).copy()
    values = np.empty(shape, dtype)
    numcodecs.blosc.decompress(encoded, values)
    return values


def checksum(data: bytes) -> str:
    """Return the crc32c of data as eight hexadecimal digits, as in commit records."""
    return f"{google_crc32c.value(data):08x}"


class ChunkFiles:
    """The files of an array's chunks, in a folder on this machine.

    Args:
        array: array with a dtype of four bytes, created with `codecs(compression)`.
        compression: compression of the array.
    """

    def __init__(self, array: zarr.Array[Any], compression: Compression) -> None:
        store: Any = array.store
        self._folder = Path(store.root) / array.path
        self._metadata: Any = array.metadata
        self._shape, self._dtype = array.chunks, array.dtype
        self._compression = compression

    @phase(LOAD)
    def read(self, coordinates: tuple[int, ...]) -> tuple[NDArray[Any], str]:
        """Return the values of a chunk in the chunk's shape, and the checksum of the stored bytes.

        Raises:
            DamagedFileError: the file is missing or damaged.
        """
        path = self.path(coordinates)
        encoded, stored = _checked(path)
        try:
            return decode(encoded, self._compression, self._shape, self._dtype), stored
        except (RuntimeError, ValueError) as error:
            raise DamagedFileError(path, str(error)) from error

    def checksum(self, coordinates: tuple[int, ...]) -> str:
        """Return the stored checksum of a chunk, after comparing all bytes with it.

        Raises:
            DamagedFileError: the file is missing or damaged.
        """
        return _checked(self.path(coordinates))[1]

    def exists(self, coordinates: tuple[int, ...]) -> bool:
        """Return whether a chunk has a file."""
        return self.path(coordinates).exists()

    def blank(self) -> NDArray[Any]:
        """Return the values of a chunk that was never written, which are the fill value."""
        return np.full(self._shape, self._metadata.fill_value, self._dtype)

    def remove(self, coordinates: tuple[int, ...]) -> None:
        """Remove the file of a chunk, if it exists."""
        self.path(coordinates).unlink(missing_ok=True)

    def write(self, coordinates: tuple[int, ...], values: NDArray[np.float32]) -> str:
        """Write a chunk; a reader sees the chunk before or after the write.

        Args:
            coordinates: index of the chunk along each axis.
            values: values in the chunk's shape, or shorter along an axis at the end of the array.
                They must be integers if the array has an integer dtype.

        Returns:
            The checksum of the stored bytes.
        """
        given = values.astype(self._dtype, copy=False)
        whole = np.reshape(given, (1,) * (len(self._shape) - values.ndim) + values.shape)
        missing = [
            (0, full - length) for full, length in zip(self._shape, whole.shape, strict=True)
        ]
        if any(after for _, after in missing):
            whole = np.pad(whole, missing, constant_values=self._metadata.fill_value)
        parts = encode(whole, self._compression)
        # Temporary files of chunks are in the array's folder, the only one that `sweep` searches.
        write_unsynced(self.path(coordinates), parts, self._folder)
        return f"{int.from_bytes(parts[1], 'little'):08x}"

    def path(self, coordinates: tuple[int, ...]) -> Path:
        """Return the file of a chunk."""
        return self._folder / str(self._metadata.encode_chunk_key(coordinates))


def _checked(path: Path) -> tuple[bytes, str]:
    """Return the bytes of a chunk without the checksum, and the checksum."""
    try:
        with path.open("rb", buffering=0) as file:
            encoded = file.read(max(0, os.fstat(file.fileno()).st_size - CHECKSUM_BYTES))
            stored = f"{int.from_bytes(file.read(), 'little'):08x}"
    except FileNotFoundError as error:
        raise DamagedFileError(path, "its file is missing") from error
    if stored != checksum(encoded):
        raise DamagedFileError(path, "its checksum does not agree")
    return encoded, stored
