"""Memory of the device and the host that is available to one job of a run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from outlier_atlas.devices.limits import THIS_MACHINE, available
from outlier_atlas.devices.registry import HOST, is_host, is_unified
from outlier_atlas.units import bytes_of

GIVEN = "execution.device_memory"
"""Name of memory that the configuration gives."""


@dataclass(frozen=True)
class ConcurrentJobs:
    """The jobs of a run that run on this machine at the same time.

    Attributes:
        jobs: number of jobs, including this one.
        processes: process ids of the other running jobs.
    """

    jobs: int = 1
    processes: Collection[int] = ()


@dataclass(frozen=True)
class MemoryBudget:
    """The memory that is available to one job of a run.

    Attributes:
        name: name of the device of the forward pass; `cpu` for the host.
        memory: bytes of that device for one job; None if they are unknown.
        called: description of this memory for messages.
        host_memory: bytes of the host for one job; None if they are unknown, or if the host is
            another machine.
        jobs: number of jobs that share the host.
        alone: the budget if one job runs at a time; None if this budget is for one job.
    """

    name: str
    memory: int | None
    called: str
    host_memory: int | None
    jobs: int = 1
    alone: MemoryBudget | None = None

    @property
    def host(self) -> bool:
        """Whether the forward pass is on the host."""
        return is_host(self.name)

    @property
    def unified(self) -> bool:
        """Whether the device and the host share one memory."""
        return is_unified(self.name)

    @property
    def shared(self) -> bool:
        """Whether `memory` is the share of one of several jobs."""
        return self.jobs > 1 and self.called == THIS_MACHINE

    @property
    def host_available(self) -> int | None:
        """Bytes of the host for a job on a device; None if they are unknown."""
        return None if self.host or self.unified else self.host_memory

    @classmethod
    def of(
        cls, devices: Sequence[str], name: str, given: str | None, concurrent: ConcurrentJobs
    ) -> MemoryBudget:
        """Return the budget on devices of this machine, at most `execution.device_memory`.

        The device with the least free memory determines the budget.

        Args:
            devices: names of devices, such as `cuda:0`, `mps` or `cpu`.
            name: title of the first device.
            given: `execution.device_memory`, such as `24GiB`.
            concurrent: the jobs that share the host; each job leases its own GPUs.
        """
        shares = concurrent.jobs, concurrent.processes
        memory, called = min(
            (available(device, *shares) for device in devices), key=lambda known: known[0] or 0
        )
        if given is not None and (memory is None or bytes_of(given) < memory):
            memory, called = bytes_of(given), GIVEN
        budget = cls(name, memory, called, available(HOST, *shares)[0], concurrent.jobs)
        if concurrent.jobs == 1:
            return budget
        return replace(budget, alone=cls.of(devices, name, given, replace(concurrent, jobs=1)))

    @classmethod
    def elsewhere(cls, given: str, host: bool = False) -> MemoryBudget:
        """Return the budget on a device of another machine, or on the host of another machine."""
        return cls(HOST if host else "a device elsewhere", bytes_of(given), GIVEN, None)
