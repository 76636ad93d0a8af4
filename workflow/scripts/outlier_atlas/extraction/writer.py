"""Writing of rows from the forward pass to the store during the next batch."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch

from outlier_atlas.devices.interface import Device, OnHost
from outlier_atlas.extraction.batched_queue import BatchedQueue, pin_to_core_share
from outlier_atlas.extraction.float32 import Float32
from outlier_atlas.extraction.summaries import SummaryWriter
from outlier_atlas.phases import COPY, ENCODE, WRITE, phase
from outlier_atlas.plan.queue_limits import HOST_QUEUE_BYTES, QUEUE_BYTES, THREADS
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.commits import Rows
from outlier_atlas.store.layout import Target


def queue_bytes(device: Device) -> int:
    """Return the maximum number of bytes that wait to be written, for a device."""
    return min(QUEUE_BYTES, HOST_QUEUE_BYTES) if device.is_host else QUEUE_BYTES


@dataclass(frozen=True)
class _Piece:
    """Queued tokens of a target within one chunk's rows, with their whole sequence."""

    rows: Rows
    target: Target
    start: int
    values: torch.Tensor
    sequence: torch.Tensor
    host: OnHost
    batch: int


@dataclass
class _Assembly:
    """Partly filled rows of one target in one chunk."""

    values: torch.Tensor
    filled: int = 0


class RowWriter:
    """A writer that divides the output of a forward pass into chunks and writes them in threads.

    Args:
        arrays: arrays of the store.
        summaries: writer of the targets that are summaries.
        missing: rows to write with their targets; other rows are ignored.
        written: callback for rows with all targets written, called in one of the threads.
        bound: number of waiting bytes above which `put` waits.
        shares_cores: whether the forward pass runs on the cores of the writing threads.
        in_order: whether the chunks of a target are written in the order of their tokens, as shards
            need them; otherwise two threads may write chunks of one target at the same time.

    As a context manager, it waits at the end of the block until all rows are written. It raises an
    error that occurred in a thread.
    """

    def __init__(
        self,
        arrays: Arrays,
        summaries: SummaryWriter,
        missing: Mapping[Rows, frozenset[Target]],
        written: Callable[[Rows], None],
        bound: int,
        shares_cores: bool = False,
        in_order: bool = False,
    ) -> None:
        self._arrays = arrays
        self._summaries = summaries
        self._missing = missing
        self._rows = sorted(missing, key=lambda rows: rows.start)
        self._starts = np.array([rows.start for rows in self._rows], np.int64)
        self._open = {rows: len(targets) for rows, targets in missing.items()}
        self._written = written
        self._assemblies: dict[tuple[Rows, Target], _Assembly] = {}
        self._assembling = threading.Lock()
        self._queue: BatchedQueue[_Piece] = BatchedQueue(
            THREADS if shares_cores else 1, lambda piece: piece.target if in_order else None
        )
        self._state = threading.Condition()
        self._waiting_bytes = 0
        self._bound = bound
        self._batch = 0
        self._waiting: Counter[int] = Counter()
        self._failure: BaseException | None = None
        self._started = threading.Barrier(THREADS + 1)
        self._shares_cores = shares_cores
        self._threads = [
            threading.Thread(target=self._work, args=(index,), daemon=True)
            for index in range(THREADS)
        ]

    def next_batch(self) -> None:
        """Start another batch, and wait until all batches but the last are written.

        A kill then loses at most the current batch and the batch that is being written.
        """
        self._queue.release()
        with phase(WRITE), self._state:
            self._state.wait_for(lambda: self._failure or not self._waiting[self._batch - 1])
            self._raise()
            self._batch += 1

    def put(self, target: Target, start: int, values: torch.Tensor, host: OnHost) -> None:
        """Queue a sequence of a target.

        Args:
            target: the target.
            start: index of the first token.
            values: values of the sequence, (token, channel), a part of `host`.
            host: the copy on the host, which may still be in transfer.
        """
        stop = start + len(values)
        index = max(0, int(np.searchsorted(self._starts, start, side="right")) - 1)
        for rows in self._rows[index:]:
            if rows.start >= stop:
                break
            first, last = max(start, rows.start), min(stop, rows.stop)
            if first < last and target in self._missing[rows]:
                part = values[first - start : last - start]
                self._enqueue(_Piece(rows, target, first, part, values, host, self._batch))

    def _enqueue(self, piece: _Piece) -> None:
        with self._state:
            if self._waiting_bytes >= self._bound:
                self._queue.release()
            with phase(WRITE):
                self._state.wait_for(lambda: self._failure or self._waiting_bytes < self._bound)
            self._raise()
            self._waiting_bytes += piece.values.nbytes
            self._waiting[piece.batch] += 1
        self._queue.put(piece)

    def _work(self, index: int) -> None:
        torch.set_num_threads(1)  # the forward pass uses the other threads
        if self._shares_cores:
            pin_to_core_share(index, THREADS)
        try:
            self._started.wait()
        except threading.BrokenBarrierError:
            return  # another thread could not be started
        float32 = Float32()
        while (piece := self._queue.get()) is not None:
            complete = False
            try:
                if self._failure is None:
                    with phase(ENCODE):
                        complete = self._write(piece, float32)
            except BaseException as error:
                with self._state:
                    self._failure = error
            self._queue.done(piece)
            self._done(piece, complete)

    def _write(self, piece: _Piece, float32: Float32) -> bool:
        """Write a piece once its rows are complete; return whether they are complete."""
        with phase(COPY):
            piece.host.wait()
        rows, values = piece.rows, piece.values
        if piece.target.is_summary:
            return self._summaries.take(piece.target, rows, piece.start, values, piece.sequence)
        if len(values) < rows.stop - rows.start:
            whole = self._assemble(piece)
            if whole is None:
                return False
            values = whole
        self._arrays.write(piece.target, rows.start, float32(values))
        return True

    def _assemble(self, piece: _Piece) -> torch.Tensor | None:
        rows, key = piece.rows, (piece.rows, piece.target)
        length, channels = rows.stop - rows.start, piece.values.shape[1]
        with self._assembling:
            if key not in self._assemblies:
                empty = torch.empty((length, channels), dtype=piece.values.dtype)
                self._assemblies[key] = _Assembly(empty)
            assembly = self._assemblies[key]
            assembly.values[piece.start - rows.start :][: len(piece.values)] = piece.values
            assembly.filled += len(piece.values)
            return self._assemblies.pop(key).values if assembly.filled == length else None

    def _done(self, piece: _Piece, complete: bool) -> None:
        with self._state:
            self._waiting_bytes -= piece.values.nbytes
            self._waiting[piece.batch] -= 1
            self._open[piece.rows] -= complete
            self._state.notify_all()
            if self._failure is None and complete and self._open[piece.rows] == 0:
                try:
                    self._written(piece.rows)
                except BaseException as error:
                    self._failure = error

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> RowWriter:
        threads = torch.get_num_threads()
        try:
            for thread in self._threads:
                thread.start()
        except (RuntimeError, MemoryError):
            self._started.abort()  # started threads wait at the barrier
            raise
        self._started.wait()
        # Each thread has its own number, but new threads inherit the number that was set last.
        torch.set_num_threads(threads)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write all queued rows, also after an error, because they are complete and correct."""
        self._queue.close(len(self._threads))
        with phase(WRITE):
            for thread in self._threads:
                thread.join()
        if error is None:
            self._raise()
            assert not self._assemblies, "every row that was begun is complete"
            assert not any(self._open.values()), "every missing row was written"
