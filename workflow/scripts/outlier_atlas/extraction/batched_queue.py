"""Queue for a few threads that work during a forward pass on the same cores.

The threads of a forward pass wait for each other after every operation, so work that delays one of
them delays all. Two threads that write on two cores at the same time cost the forward pass half of
what they cost one after the other.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class BatchedQueue(Generic[Item]):
    """Queue that releases items in batches of as many as there are threads.

    Args:
        batch_size: number of items in a batch; 1 releases each item immediately.
        key: function that returns the key of an item; None for an item without one. Of the items
            with a key, only one is in work at a time, so they are processed in their order.
    """

    def __init__(
        self, batch_size: int, key: Callable[[Item], Hashable | None] = lambda item: None
    ) -> None:
        self._batch_size = batch_size
        self._key = key
        self._items: deque[Item | None] = deque()
        self._released = 0
        self._in_work: set[Hashable] = set()
        self._changed = threading.Condition()

    def put(self, item: Item) -> None:
        """Add an item; a full batch is released."""
        with self._changed:
            self._items.append(item)
            if len(self._items) - self._released >= self._batch_size:
                self._release()

    def release(self) -> None:
        """Release the queued items; call this before waiting for one of them."""
        with self._changed:
            self._release()

    def close(self, threads: int) -> None:
        """Release the queued items, followed by an end marker for each thread."""
        with self._changed:
            self._items += [None] * threads
            self._release()

    def get(self) -> Item | None:
        """Wait for the next item and return it; None at the end. Call `done` after its work."""
        with self._changed:
            self._changed.wait_for(lambda: self._next() is not None)
            index = self._next()
            assert index is not None
            item = self._items[index]
            del self._items[index]
            self._released -= 1
            if item is not None and (key := self._key(item)) is not None:
                self._in_work.add(key)
            return item

    def done(self, item: Item) -> None:
        """End the work on an item, so that the next one with its key can begin."""
        key = self._key(item)
        if key is not None:
            with self._changed:
                self._in_work.discard(key)
                self._changed.notify_all()

    def _next(self) -> int | None:
        """Return the index of the first released item whose key is not in work."""
        for index, item in zip(range(self._released), self._items, strict=False):
            if item is None or self._key(item) not in self._in_work:
                return index
        return None

    def _release(self) -> None:
        self._released = len(self._items)
        self._changed.notify_all()


def pin_to_core_share(index: int, threads: int) -> None:
    """Restrict the calling thread to its share of the cores, so that no two threads share a core.

    The kernel would often schedule two of them on the same core, next to a thread of the forward
    pass.

    Args:
        index: index of the calling thread.
        threads: number of threads.
    """
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= threads:
            os.sched_setaffinity(0, cores[index::threads])
