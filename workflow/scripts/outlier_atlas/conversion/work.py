"""Threads that convert weights while they are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

Job = Callable[[], object]

_workers: ContextVar[tuple[ThreadPoolExecutor, int] | None] = ContextVar("workers", default=None)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run conversions in a number of threads in the block, including the calling one."""
    with ThreadPoolExecutor(max(count - 1, 1)) as pool:
        token = _workers.set((pool, count - 1))
        try:
            yield
        finally:
            _workers.reset(token)


def run(jobs: Iterable[Job]) -> None:
    """Run jobs, in the threads of `threads` if there are any, and return when all are done.

    Jobs release the interpreter lock while they convert.
    """
    remaining = iter(list(jobs))

    def work() -> None:
        for job in remaining:  # `next` of an iterator of a list is atomic
            job()

    pool, others = _workers.get() or (None, 0)
    futures = [pool.submit(work) for _ in range(others)] if pool is not None else []
    try:
        work()
    finally:
        for future in futures:
            future.result()
