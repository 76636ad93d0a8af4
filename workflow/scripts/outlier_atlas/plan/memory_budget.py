"""Where the jobs of a run have their forward pass, and how much of it is one job's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from outlier_atlas.plan.limits import THIS_MACHINE, available
from outlier_atlas.plan.units import bytes_of

GIVEN = "execution.device_memory"
"""What memory is called that the configuration gives."""


@dataclass(frozen=True)
class ConcurrentJobs:
    """The jobs of a run that are at work on this machine at a time.

    Attributes:
        jobs: how many, this one among them.
        processes: those of them that are at work now.
    """

    jobs: int = 1
    processes: Collection[int] = ()


@dataclass(frozen=True)
class MemoryBudget:
    """Where the jobs of a run have their forward pass.

    Attributes:
        name: what it is called; `cpu` for the host itself.
        memory: bytes of the device that one job can take, or of the host where there is none; None
            if it does not say.
        called: what has so many bytes, in words.
        host_memory: bytes of the host that one job can take; None where it does not say, or is not
            this machine.
        jobs: that share the host at a time.
        alone: the budget of one job at a time; None where it is that.
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
        """Whether `memory` is one of several jobs' share."""
        return self.jobs > 1 and self.called == THIS_MACHINE

    @property
    def host_available(self) -> int | None:
        """Bytes of the host that a job on a device can take; None if they are not known."""
        return None if self.host or self.unified else self.host_memory

    @classmethod
    def of(
        cls, devices: Sequence[str], name: str, given: str | None, concurrent: ConcurrentJobs
    ) -> MemoryBudget:
        """The budget on devices of this machine, at most `execution.device_memory`.

        It has as much memory as the fullest of them.

        Args:
            devices: `cuda:0` and such, or `mps`, or `cpu`.
            name: of the first.
            given: such as `24GiB`.
            concurrent: jobs that share the host; GPUs are leased, so each has its own.
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
        """A device that is not on this machine, or a host that is another one."""
        return cls("cpu" if host else "a device elsewhere", bytes_of(given), GIVEN, None)
