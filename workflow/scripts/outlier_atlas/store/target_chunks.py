"""Chunks of targets, and their comparison with commits.

If rows fill their chunk, their checksum is the checksum of the stored bytes, which can be compared
without decoding. If other rows share the chunk, it is the checksum of the values. The checksum of a
target with several arrays concatenates the checksums of the arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.files import DamagedFileError
from outlier_atlas.store.chunks import ChunkFiles, checksum
from outlier_atlas.store.commits import Rows
from outlier_atlas.store.layout import Target, arrays_of, has_layers


class DamagedChunkError(ValueError):
    """A chunk is missing or damaged, or differs from its commit.

    Attributes:
        target: array and layer of the chunk.
        chunk: index of the chunk.
    """

    def __init__(self, target: Target, chunk: int, cause: str) -> None:
        super().__init__(f"{target.array}, layer {target.layer}, chunk {chunk}: damaged ({cause})")
        self.target = target
        self.chunk = chunk


class TargetChunks:
    """The chunks of targets, in the arrays of the targets.

    Args:
        arrays: arrays by name.
        chunk_tokens: number of tokens in a chunk.
    """

    def __init__(self, arrays: Mapping[str, Any], chunk_tokens: int) -> None:
        self._size = chunk_tokens
        self._files = {
            name: ChunkFiles(array, array.attrs["compression"]) for name, array in arrays.items()
        }
        self._rows = {
            name: {layer: row for row, layer in enumerate(array.attrs.get("layers", []))}
            for name, array in arrays.items()
        }

    def read(
        self, target: Target, chunk: int, into: Sequence[NDArray[Any]] | None = None
    ) -> tuple[list[NDArray[Any]], str]:
        """Return the values of each array, (token, channel), and the checksum of the stored bytes.

        Args:
            target: the target.
            chunk: the chunk.
            into: C-contiguous array for the values of each array, to use instead of new memory.

        Raises:
            DamagedChunkError: a file is missing or damaged.
        """
        places = list(self._of(target, chunk))
        memory: Sequence[NDArray[Any] | None] = [None for _ in places] if into is None else into
        try:
            read = [files.read(at, to) for (files, at), to in zip(places, memory, strict=True)]
        except DamagedFileError as error:
            raise DamagedChunkError(target, chunk, error.cause) from error
        values = [part.reshape(self._size, -1) for part, _ in read]
        return values, "".join(stored for _, stored in read)

    def write(self, target: Target, chunk: int, values: Iterable[NDArray[Any]]) -> str:
        """Write the values of each array, and return the checksum of the stored bytes.

        Raises:
            DamagedChunkError: the index of the shard is damaged.
        """
        places = zip(self._of(target, chunk), values, strict=True)
        try:
            return "".join(files.write(at, part) for (files, at), part in places)
        except DamagedFileError as error:
            raise DamagedChunkError(target, chunk, error.cause) from error

    def blank(self, target: Target) -> list[NDArray[Any]]:
        """Return the values of a chunk that was never written."""
        return [np.reshape(f.blank(), (self._size, -1)) for f, _ in self._of(target, 0)]

    def has(self, target: Target) -> bool:
        """Return whether the arrays contain a target."""
        names = arrays_of(target)
        return not has_layers(target) or all(target.layer in self._rows[n] for n in names)

    def exists(self, target: Target, chunk: int) -> bool:
        """Return whether a chunk has a file."""
        return any(files.exists(at) for files, at in self._of(target, chunk))

    def path(self, target: Target, chunk: int) -> Path:
        """Return the file of a chunk, in the first array of the target."""
        files, at = next(self._of(target, chunk))
        return files.path(at)

    def remove(self, target: Target, chunk: int) -> set[int]:
        """Remove a chunk from all arrays, and return the chunks that are lost with it."""
        return {lost for files, at in self._of(target, chunk) for lost in files.remove(at)}

    def sharing(self, target: Target, chunk: int) -> range:
        """Return the chunks that are in the same file as a chunk."""
        length = max(files.shard_chunks for files, _ in self._of(target, chunk))
        first = chunk - chunk % length
        return range(first, first + length)

    def put_in_order(self, target: Target, chunks: Iterable[int]) -> None:
        """Make the bytes of the shards with these chunks independent of the order of writing.

        Raises:
            DamagedChunkError: the index of a shard is damaged.
        """
        for first in sorted({self.sharing(target, chunk).start for chunk in chunks}):
            try:
                for files, at in self._of(target, first):
                    files.put_in_order(at)
            except DamagedFileError as error:
                raise DamagedChunkError(target, first, error.cause) from error

    def check(self, target: Target, chunk: int, counted: Iterable[tuple[Rows, str]]) -> None:
        """Compare counting rows with their checksums; decode a chunk only if rows share it.

        Raises:
            DamagedChunkError: a checksum does not agree.
        """
        counted = list(counted)
        if all(self._fills(rows) for rows, _ in counted):
            try:
                stored = "".join(files.checksum(at) for files, at in self._of(target, chunk))
            except DamagedFileError as error:
                raise DamagedChunkError(target, chunk, error.cause) from error
            self._compare(target, chunk, [], stored, counted)
        else:
            self._compare(target, chunk, *self.read(target, chunk), counted)

    def checked(
        self,
        target: Target,
        chunk: int,
        counted: Iterable[tuple[Rows, str]],
        into: Sequence[NDArray[Any]] | None = None,
    ) -> list[NDArray[Any]]:
        """Return the values of each array, after comparing counting rows with their checksums.

        Args:
            target: the target.
            chunk: the chunk.
            counted: the counting rows with their checksums.
            into: C-contiguous array for the values of each array, to use instead of new memory.

        Raises:
            DamagedChunkError: a file is missing, or a checksum does not agree.
        """
        values, stored = self.read(target, chunk, into)
        self._compare(target, chunk, values, stored, counted)
        return values

    def sum_of(self, values: Iterable[NDArray[Any]], rows: Rows) -> str:
        """Return the checksum of rows, given the values (token, channel) of the whole chunk."""
        first = rows.chunk * self._size
        pieces = (part[rows.start - first : rows.stop - first] for part in values)
        return "".join(checksum(piece.tobytes()) for piece in pieces)

    def _compare(
        self,
        target: Target,
        chunk: int,
        values: list[NDArray[Any]],
        stored: str,
        counted: Iterable[tuple[Rows, str]],
    ) -> None:
        for rows, committed in counted:
            if committed != (stored if self._fills(rows) else self.sum_of(values, rows)):
                raise DamagedChunkError(target, chunk, "it is not the one that was committed")

    def _fills(self, rows: Rows) -> bool:
        return rows.stop - rows.start == self._size

    def _of(self, target: Target, chunk: int) -> Iterator[tuple[ChunkFiles, tuple[int, ...]]]:
        """Yield the files of each array of a target, and the coordinates of a chunk in them."""
        for name in arrays_of(target):
            row = (self._rows[name][target.layer],) if has_layers(target) else ()
            yield self._files[name], (*row, chunk, 0)
