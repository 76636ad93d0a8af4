"""The interface to a device: all that the project asks of one beyond torch's own operations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OnHost:
    """A copy of a tensor in host memory, perhaps in progress; or one that stays on its device.

    Attributes:
        values: the copy; read it after `wait`.
        copied: is recorded when the copy is complete; None for a copy that is complete.
    """

    values: torch.Tensor
    copied: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Wait until the copy is complete."""
        if self.copied is not None:
            self.copied.synchronize()


@dataclass(frozen=True)
class OnDevice:
    """An input on the device of the forward pass, perhaps still on its way there.

    Attributes:
        values: the input; use what `take` returns.
        copied: is recorded when the copy is complete; None for a copy that is complete.
    """

    values: torch.Tensor
    copied: torch.cuda.Event | None = None

    def take(self) -> torch.Tensor:
        """Return the input; what the caller's stream does from here on waits for the copy."""
        import torch

        if self.copied is not None:
            stream = torch.cuda.current_stream(self.values.device)
            stream.wait_event(self.copied)
            self.values.record_stream(stream)
        return self.values


class Device(ABC):
    """A device on which forward passes run. Making one touches neither torch nor the device.

    Attributes:
        name: as torch names it: `cuda:0`, `mps`, `cpu`.
        is_host: whether it computes on the cores of the host.
        shares_host_memory: whether its memory is that of the host.
        has_float64: whether it computes in float64.
    """

    is_host = False
    shares_host_memory = False
    has_float64 = True

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def title(self) -> str:
        """The name under which runs on it are compared."""
        return self.name

    @abstractmethod
    def free_memory(self) -> int | None:
        """Return the bytes that are free now; None if the limit is the memory of the host."""

    @abstractmethod
    def total_memory(self) -> int | None:
        """Return its bytes, the same on equal devices; None as for `free_memory`."""

    def empty_cache(self) -> None:
        """Return memory to the device that torch keeps for later tensors; nothing by default."""
        return

    def reset_peak(self) -> None:
        """Begin to count the peak of allocated memory from now on; nothing by default."""
        return

    def peak(self) -> int | None:
        """Return the most bytes allocated at a time; None if the device does not count them."""
        return None

    @abstractmethod
    def to_host(self, tensor: torch.Tensor) -> OnHost:
        """Start to copy a tensor to the host. It is a copy in any case: some models overwrite what
        a module returned."""

    def upload(self, tensor: torch.Tensor) -> OnDevice:
        """Start to copy an input to the device, ahead of the forward pass.

        Unless a device does better, the forward pass moves its input itself.
        """
        return OnDevice(tensor)


def duplicate(tensor: torch.Tensor) -> OnHost:
    """Copy a tensor on the device that it is on, for a thread that reads it there.

    That thread's work follows in the order of the device's default stream, as the forward's.
    """
    return OnHost(tensor.detach().clone())
