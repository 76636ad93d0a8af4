"""Arrays of a run, open for reading and writing rows of tokens.

`store/create.py` gives the arrays their shape. Values that are read must match their commits.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from outlier_atlas.locks import flock
from outlier_atlas.settings.sites import TOKEN_LOSS
from outlier_atlas.store.commits import Counted, Rows
from outlier_atlas.store.layout import Layout, Target, arrays_of, boundary_array, parts
from outlier_atlas.store.metadata import DamagedMetadataError, check
from outlier_atlas.store.run_files import RunFiles
from outlier_atlas.store.target_chunks import DamagedChunkError, TargetChunks

Float32 = NDArray[np.float32]


class Arrays:
    """The arrays of a run, open for reading and writing rows of tokens.

    Args:
        run: the files of the run.
        layout: the layout of the store.
        counted: a function that returns the commits that values must match; not needed to write.
        recorded: whether the metadata must match its record.

    Raises:
        DamagedMetadataError: the arrays are missing, or their metadata is damaged.
    """

    def __init__(
        self, run: RunFiles, layout: Layout, counted: Counted | None = None, recorded: bool = True
    ) -> None:
        if recorded:
            check(run)
        self._layout = layout
        self._locks = run.chunk_locks
        self._counted = counted
        self._written: dict[tuple[Target, Rows], str] = {}
        try:
            activations = zarr.open_group(run.activations, mode="r+", use_consolidated=False)
            boundaries = zarr.open_group(run.boundaries, mode="r+", use_consolidated=False)
            arrays = {p.name: activations[p.name] for site in layout.store for p in parts(site)}
            between = (boundary_array(layer) for layer in layout.boundaries())
            arrays |= {name: boundaries[name] for name in between}
            if layout.perplexity:
                arrays[TOKEN_LOSS] = activations[TOKEN_LOSS]
            self.chunks = TargetChunks(arrays, layout.chunk_tokens)
        # zarr raises various errors for metadata that is damaged or of another layout.
        except Exception as error:
            record = run.store_record.relative_to(run.folder)
            cause = f"not as {record} says: {type(error).__name__} {error}"
            raise DamagedMetadataError(run, run.activations, cause) from error

    def read(self, target: Target, start: int, stop: int) -> Float32:
        """Return tokens `start` to `stop` of a target, (token, channel).

        The arrays of a target are concatenated along channels as float32, which represents integers
        up to 2^24 exactly.

        Raises:
            DamagedChunkError: a chunk is missing, damaged, or not the one that was committed.
        """
        size = self._layout.chunk_tokens
        pieces = []
        for chunk in range(start // size, -(-stop // size)):
            first = chunk * size
            inside = slice(max(start - first, 0), min(stop - first, size))
            pieces.append([part[inside] for part in self._chunk(target, chunk)])
        joined = [np.concatenate(part) if len(part) > 1 else part[0] for part in zip(*pieces)]  # noqa: B905
        values = [part.astype(np.float32, copy=False) for part in joined]
        return values[0] if len(values) == 1 else np.concatenate(values, axis=1)

    def write(self, target: Target, start: int, values: Float32) -> None:
        """Write rows of a target within one chunk, from token `start`.

        Values are (token, channel), as `read` returns them. A reader sees the chunk before or after
        the write. If the rows do not fill the chunk, its other rows are kept.

        Raises:
            DamagedChunkError: the chunk is damaged and has rows of other jobs.
        """
        rows = Rows(start // self._layout.chunk_tokens, start, start + len(values))
        range_ = self._layout.chunk_range(rows.chunk)
        assert range_[0] <= rows.start and rows.stop <= range_[1], "rows of one chunk"
        of_each = np.split(values, len(arrays_of(target)), axis=1)
        if rows.stop - rows.start == self._layout.chunk_tokens:
            self._written[target, rows] = self.chunks.write(target, rows.chunk, of_each)
            return
        with self._chunk_lock(rows.chunk):
            self._written[target, rows] = self._merge(target, rows, of_each)

    def written(self, rows: Rows, targets: Iterable[Target]) -> dict[Target, str]:
        """Return the checksums of written rows for their commit, and forget them."""
        return {target: self._written.pop((target, rows)) for target in targets}

    def check(self, target: Target, chunk: int) -> None:
        """Compare a chunk with its commits, which is faster than reading the chunk.

        Raises:
            DamagedChunkError: the chunk is missing, damaged, or not the one that was committed.
        """
        assert self._counted is not None, "there is something to compare it with"
        counted = self._counted(target, chunk)
        if counted:
            self.chunks.check(target, chunk, counted)

    def _chunk(self, target: Target, chunk: int) -> list[NDArray[Any]]:
        assert self._counted is not None, "what is read is compared with its commits"
        return self.chunks.checked(target, chunk, self._counted(target, chunk))

    def _merge(self, target: Target, rows: Rows, of_each: Sequence[Float32]) -> str:
        """Write rows into a chunk that other jobs share, and return the checksum of the values."""
        first = rows.chunk * self._layout.chunk_tokens
        alone = (rows.start, rows.stop) == self._layout.chunk_range(rows.chunk)
        whole = self.chunks.blank(target) if alone else self._shared(target, rows.chunk)
        for part, values in zip(whole, of_each, strict=True):
            part[rows.start - first : rows.stop - first] = values
        self.chunks.write(target, rows.chunk, whole)
        return self.chunks.sum_of(whole, rows)

    def _shared(self, target: Target, chunk: int) -> list[NDArray[Any]]:
        """Return a chunk with the rows that other jobs have written."""
        try:
            return self.chunks.read(target, chunk)[0]
        except DamagedChunkError:
            counts = self._counted is None or self._counted(target, chunk)
            if self.chunks.exists(target, chunk) and counts:
                raise
        return self.chunks.blank(target)  # no row of the chunk counts

    @contextmanager
    def _chunk_lock(self, chunk: int) -> Iterator[None]:
        """Lock a chunk that several sequence shards read, change and write."""
        self._locks.mkdir(parents=True, exist_ok=True)
        with (self._locks / f"chunk-{chunk}").open("w") as file:
            flock(file, fcntl.LOCK_EX, self._locks)
            yield
