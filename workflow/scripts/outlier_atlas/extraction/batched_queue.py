"""Work for a few threads while a forward pass uses the same cores.

The threads of a forward pass wait for each other after every operation, so what keeps one of them
from its core keeps them all. Two threads that write on two cores at the same time cost the forward
pass half of what they cost one after the other.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Handout(Generic[Item]):
    """A queue that hands out items as many at a time as there are threads.

    Args:
        together: how many; 1 hands out each as it comes.
    """

    def __init__(self, together: int) -> None:
        self._together = together
        self._items: deque[Item | None] = deque()
        self._free = 0
        self._changed = threading.Condition()

    def put(self, item: Item) -> None:
        """Hand out an item as soon as enough others are there, or when `release` is called."""
        with self._changed:
            self._items.append(item)
            if len(self._items) - self._free >= self._together:
                self._release()

    def release(self) -> None:
        """Hand out the queued items; call this before waiting for one of them."""
        with self._changed:
            self._release()

    def close(self, threads: int) -> None:
        """Hand out the queued items, and then to each thread the end."""
        with self._changed:
            self._items += [None] * threads
            self._release()

    def get(self) -> Item | None:
        """The next item, None at the end; waits for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._free)
            self._free -= 1
            return self._items.popleft()

    def _release(self) -> None:
        self._free = len(self._items)
        self._changed.notify_all()


def keep_apart(index: int, threads: int) -> None:
    """Leave the calling thread the cores that are its share, so that no two of the threads meet on
    one: the kernel would often put them on the same one, next to one of the forward pass's."""
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= threads:
            os.sched_setaffinity(0, cores[index::threads])
