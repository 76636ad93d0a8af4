"""The memory that one job of a run can have: of its device and of the host."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from outlier_atlas.devices.limits import THIS_MACHINE, available
from outlier_atlas.units import bytes_of

GIVEN = "execution.device_memory"
"""Name of memory that the configuration gives."""


@dataclass(frozen=True)
class ConcurrentJobs:
    """The jobs of a run that run on this machine at the same time.

    Attributes:
        jobs: number of jobs, with this one.
        processes: ids of the other jobs that are at work now.
    """

    jobs: int = 1
    processes: Collection[int] = ()


@dataclass(frozen=True)
class MemoryBudget:
    """The memory that one job of a run can have.

    Attributes:
        name: name of the device of the forward pass; `cpu` for the host.
        memory: bytes of that device for one job; None if they are unknown.
        called: name of the memory that has these bytes, in words.
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
        return self.name == "cpu"

    @property
    def unified(self) -> bool:
        """Whether the device and the host have one memory."""
        return self.name == "mps"

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

        It is the memory of the device with the least free memory.

        Args:
            devices: names of devices: `cuda:0` and the like, or `mps`, or `cpu`.
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
        budget = cls(name, memory, called, available("cpu", *shares)[0], concurrent.jobs)
        if concurrent.jobs == 1:
            return budget
        return replace(budget, alone=cls.of(devices, name, given, replace(concurrent, jobs=1)))

    @classmethod
    def elsewhere(cls, given: str, host: bool = False) -> MemoryBudget:
        """Return the budget on a device of another machine, or on another machine as the host."""
        return cls("cpu" if host else "a device elsewhere", bytes_of(given), GIVEN, None)
