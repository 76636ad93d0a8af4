"""Memory that a device can give to a job, and that this machine can give to a process."""

from __future__ import annotations

import os
import resource
from collections.abc import Collection, Iterator
from pathlib import Path

from outlier_atlas.devices.registry import named
from outlier_atlas.preload.client import FORKED

CONTROL_GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
LATER_THREADS = 8
"""Threads that a job starts outside its forward pass: readers, writers, progress, measurement."""
USUAL_STACK = 8 * 2**20
"""Bytes of a thread's stack where nothing limits it."""
THIS_MACHINE = "this machine"
"""Name of the memory that all jobs of this machine share."""


def available(
    device: str, jobs: int = 1, processes: Collection[int] = ()
) -> tuple[int | None, str]:
    """Return the bytes that a device can give to one job, and its name; None if they are unknown.

    Args:
        device: `cuda:0`, which is the job's own, `mps` or `cpu`.
        jobs, processes: see `host_memory`.
    """
    known = named(device)
    free = known.free_memory()
    return (host_memory(jobs, processes), THIS_MACHINE) if free is None else (free, known.title)


def whole(device: str, jobs: int = 1, processes: Collection[int] = ()) -> int | None:
    """Return the bytes of a whole device for one job, equal on equal devices.

    Args:
        device: name of the device.
        jobs, processes: see `host_memory`.
    """
    total = named(device).total_memory()
    return host_memory(jobs, processes) if total is None else total


def host_memory(jobs: int = 1, processes: Collection[int] = ()) -> int | None:
    """Return the number of bytes that this process can have in total.

    They are the bytes of the process itself, and the free bytes of the machine, its control groups
    and its limits. The plan also counts the process itself.

    Args:
        jobs: number of jobs that share the machine and its control groups evenly, with this one.
        processes: process ids of the other running jobs, whose memory is also shared.
    """
    # The memory that a job shares with the process it was forked from is not its own, and what it
    # writes there is copied.
    shared = int(os.environ.get(FORKED, "0"))
    own = max(0, (resident() or 0) - shared)
    # Jobs beyond `jobs` wait for a device, and have the least memory.
    held_by = (max(0, (resident(str(process)) or 0) - shared) for process in processes)
    others = sorted(held_by, reverse=True)
    held = own + sum(others[: jobs - 1])
    known = [(max(0, left) + held) // jobs for left in (*_machine(), *_control_groups())]
    known += [max(0, left) + own for left in _limits()]
    return min(known, default=None)


def resident(process: str = "self") -> int | None:
    """Return the anonymous memory of a process; None off Linux, or once the process has ended.

    Pages of mapped files do not count: the system takes them back when it needs them.
    """
    try:
        fields = Path(f"/proc/{process}/statm").read_text("ascii")
    except OSError:
        return None
    _, pages, shared, *_ = fields.split()
    return (int(pages) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _machine() -> Iterator[int]:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 2**10


def _control_groups() -> Iterator[int]:
    """Yield what the control group of this process leaves, and every group above it.

    Containers and batch systems set their limits there.
    """
    for line in _lines(MEMBERSHIP):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, most, used = CONTROL_GROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root = CONTROL_GROUPS / "memory"
            most, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = root / path.lstrip("/")
        # A container may see the path of the host; its own group is the root then.
        for folder in (own, *own.parents):
            if folder == root or root in folder.parents:
                yield from _left(folder, most, used)


def _left(folder: Path, most: str, used: str) -> Iterator[int]:
    limit, taken = (next(_lines(folder / name), "max") for name in (most, used))
    if limit.isdigit() and taken.isdigit():
        # Pages of files count as used; the system drops them before it refuses memory.
        cached = (line.split() for line in _lines(folder / "memory.stat"))
        names = {"total_inactive_file", "total_active_file", "inactive_file", "active_file"}
        sizes = {name: int(size) for name, size in cached if name in names}
        files = sum(
            max(sizes.get(name, 0), sizes.get(f"total_{name}", 0))
            for name in ("inactive_file", "active_file")
        )
        yield int(limit) - int(taken) + files


def _limits() -> Iterator[int]:
    """Yield what the limits of this process leave; a thread counts with its whole stack."""
    stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    stacks = (LATER_THREADS + (os.cpu_count() or 1)) * (
        USUAL_STACK if stack == resource.RLIM_INFINITY else stack
    )
    sizes = next(_lines(Path("/proc/self/statm")), "").split()
    for limit, column in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY and sizes:
            yield soft - int(sizes[column]) * os.sysconf("SC_PAGE_SIZE") - stacks


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return
