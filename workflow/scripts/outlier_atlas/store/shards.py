"""Shards: files with several consecutive chunks of an array (Zarr's codec `sharding_indexed`).

A file begins with an index, which has the offset and the length of each chunk and a checksum.
Chunks are appended, and the index is written in place after them. So the file is a valid shard
after every write, and any reader of Zarr sees each chunk as soon as it is written. A kill between
the two writes leaves bytes that the index does not name; the next write replaces them.

Several jobs may write one shard, so readers and writers lock its file. `put_in_order` makes the
bytes of a shard independent of the order in which its chunks were written.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from outlier_atlas.files import DamagedFileError, replacing, write_all, write_error
from outlier_atlas.locks import flock

EMPTY = 2**64 - 1
"""Offset and length of a chunk that the shard does not have."""

COPIED = 16 * 2**20
"""Number of bytes that are copied at a time."""

Index = NDArray[np.uint64]
"""Offset and length of each chunk, (chunk, 2)."""


class MissingChunkError(DamagedFileError):
    """A chunk that is not in its shard."""


class Shard:
    """A file with several chunks of an array.

    Args:
        path: the file, which may be missing.
        chunks: number of chunks that the file has room for. The index of up to 255 chunks is in one
            page of memory, which a kill does not cut short.
    """

    def __init__(self, path: Path, chunks: int) -> None:
        self._path = path
        self._chunks = chunks
        self._begin = 16 * chunks + 4

    def read(self, slot: int, ending: int) -> tuple[bytes, bytes]:
        """Return the bytes of a chunk, in two parts.

        Args:
            slot: index of the chunk in the shard.
            ending: length of the second part.

        Raises:
            MissingChunkError: the chunk or the file is missing.
            DamagedFileError: the index is damaged.
        """
        try:
            with self._opened(fcntl.LOCK_SH) as file:
                start, length = map(int, self._index(file)[slot])
                if start != EMPTY:
                    first = max(0, length - ending)
                    encoded = os.pread(file.fileno(), first, start)
                    return encoded, os.pread(file.fileno(), length - first, start + first)
        except FileNotFoundError as error:
            raise MissingChunkError(self._path, "its file is missing") from error
        raise MissingChunkError(self._path, f"chunk {slot} of the shard is missing")

    def has(self, slot: int) -> bool:
        """Return whether the shard has a chunk; a damaged shard may have it."""
        try:
            with self._opened(fcntl.LOCK_SH) as file:
                return int(self._index(file)[slot, 0]) != EMPTY
        except FileNotFoundError:
            return False
        except DamagedFileError:
            return True

    def write(self, slot: int, parts: Sequence[bytes]) -> None:
        """Append a chunk, and then name it in the index.

        Raises:
            DamagedFileError: the index is damaged.
            OSError: the disk is full. The message has the path and the number of bytes.
        """
        length = sum(map(len, parts))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._opened(fcntl.LOCK_EX, create=True) as file:
                self._append(file, slot, parts, length)
        except OSError as error:
            size = f"{length:,} bytes were to be written"
            raise write_error(error, self._path, size) from error

    def remove(self, slot: int) -> bool:
        """Remove a chunk from the index; a file with a damaged index is removed.

        Returns:
            Whether the index was damaged, so that all chunks of the shard are lost.
        """
        try:
            with self._opened(fcntl.LOCK_EX) as file:
                try:
                    index = self._index(file)
                except DamagedFileError:
                    self._path.unlink()
                    return True
                index[slot] = EMPTY
                if (index[:, 0] == EMPTY).all():
                    self._path.unlink()
                else:
                    self._write_index(file, index)
        except FileNotFoundError:
            pass
        return False

    def put_in_order(self, folder: Path, chunks: int) -> None:
        """Rewrite the file if its chunks are not in order, or if other bytes are between them.

        Args:
            folder: folder for the temporary file, on the same file system.
            chunks: number of chunks that the array has in this shard; others are dropped.

        Raises:
            DamagedFileError: the index is damaged.
            OSError: the disk is full.
        """
        try:
            with self._opened(fcntl.LOCK_EX) as file:
                index = self._index(file)
                wanted = self._ordered(index, chunks)
                end = self._end(wanted)
                if (wanted == index).all() and os.fstat(file.fileno()).st_size == end:
                    return
                with replacing(self._path, folder) as temporary:
                    self._copy(file, index, wanted, temporary)
        except FileNotFoundError:
            pass

    def _append(self, file: FileIO, slot: int, parts: Sequence[bytes], length: int) -> None:
        index = self._index(file)
        start = self._end(index)
        file.seek(start)
        try:
            for part in parts:
                write_all(file, part)
        except OSError:
            file.truncate(start)
            raise
        file.truncate(start + length)  # a killed write may have left more bytes
        index[slot] = start, length
        self._write_index(file, index)

    def _ordered(self, index: Index, chunks: int) -> Index:
        """Return the index of the same chunks, one directly after the other."""
        ordered, end = np.full_like(index, EMPTY), self._begin
        for slot, (start, length) in enumerate(index[:chunks].tolist()):
            if start != EMPTY:
                ordered[slot] = end, length
                end += length
        return ordered

    def _copy(self, source: FileIO, index: Index, ordered: Index, path: Path) -> None:
        with path.open("r+b", buffering=0) as target:
            self._write_index(target, ordered)
            for (start, length), (to, _) in zip(index.tolist(), ordered.tolist(), strict=True):
                if to == EMPTY:
                    continue
                target.seek(to)
                for done in range(0, length, COPIED):
                    count = min(COPIED, length - done)
                    write_all(target, os.pread(source.fileno(), count, start + done))

    def _end(self, index: Index) -> int:
        """Return the end of the last chunk that the index names."""
        named = index[index[:, 0] != EMPTY]
        return int((named[:, 0] + named[:, 1]).max()) if len(named) else self._begin

    def _index(self, file: FileIO) -> Index:
        stored = os.pread(file.fileno(), self._begin, 0)
        if len(stored) < self._begin:  # a kill or a full disk: the file never had a chunk
            return np.full((self._chunks, 2), EMPTY, "<u8")
        entries, stored_sum = stored[:-4], stored[-4:]
        if stored_sum != _sum(entries):
            raise DamagedFileError(self._path, "the checksum of the shard's index does not agree")
        return np.frombuffer(entries, "<u8").reshape(-1, 2).copy()

    def _write_index(self, file: FileIO, index: Index) -> None:
        entries = index.astype("<u8").tobytes()
        file.seek(0)
        write_all(file, entries + _sum(entries))

    @contextmanager
    def _opened(self, how: int, create: bool = False) -> Iterator[FileIO]:
        """Open and lock the file; a file that was replaced meanwhile is opened again.

        Raises:
            FileNotFoundError: the file is missing, and is not to be created.
        """
        flags = os.O_RDONLY if how == fcntl.LOCK_SH else os.O_RDWR
        flags |= os.O_CREAT if create else 0
        while True:
            number = os.open(self._path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            with os.fdopen(number, "rb" if how == fcntl.LOCK_SH else "r+b", buffering=0) as file:
                try:
                    flock(file, how, self._path.parent)
                except ValueError:
                    # A copy of a finished run may be read on a file system without locks.
                    if how != fcntl.LOCK_SH:
                        raise
                try:
                    current = os.path.samestat(os.fstat(number), self._path.stat())
                except FileNotFoundError:
                    current = False
                if current:
                    if create and os.fstat(number).st_size < self._begin:
                        # A valid shard from the beginning, for readers that know no locks.
                        self._write_index(file, self._index(file))
                    yield file
                    return


def _sum(entries: bytes) -> bytes:
    return int(google_crc32c.value(entries)).to_bytes(4, "little")
