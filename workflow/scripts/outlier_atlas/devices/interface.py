"""Interface of a device: the operations that the project needs in addition to torch's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OnHost:
    """Copy of a tensor in host memory, or a copy that stays on its device; it may be in progress.

    Attributes:
        values: the copy; read it after `wait`.
        copied: event that is recorded when the copy is complete; None if it is complete already.
    """

    values: torch.Tensor
    copied: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Wait until the copy is complete."""
        if self.copied is not None:
            self.copied.synchronize()


@dataclass(frozen=True)
class OnDevice:
    """Input on the device of the forward pass, whose copy may be in progress.

    Attributes:
        values: the input; use the tensor that `take` returns.
        copied: event that is recorded when the copy is complete; None if it is complete already.
    """

    values: torch.Tensor
    copied: torch.cuda.Event | None = None

    def take(self) -> torch.Tensor:
        """Return the input; later operations in the caller's stream wait for the copy."""
        import torch

        if self.copied is not None:
            stream = torch.cuda.current_stream(self.values.device)
            stream.wait_event(self.copied)
            self.values.record_stream(stream)
        return self.values


class Device(ABC):
    """Device on which forward passes run. The constructor uses neither torch nor the device.

    Attributes:
        name: name in torch: `cuda:0`, `mps`, `cpu`.
        is_host: whether the device computes on the cores of the host.
        shares_host_memory: whether the device uses the memory of the host.
        has_float64: whether the device supports float64.
    """

    is_host = False
    shares_host_memory = False
    has_float64 = True

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def title(self) -> str:
        """Name that identifies equal devices when runs are compared."""
        return self.name

    @abstractmethod
    def free_memory(self) -> int | None:
        """Return the bytes that are free now; None if only the memory of the host limits it."""

    @abstractmethod
    def total_memory(self) -> int | None:
        """Return the bytes of memory, equal on equal devices; None as for `free_memory`."""

    def empty_cache(self) -> None:
        """Return cached memory of torch to the device. By default, do nothing."""
        return

    def reset_peak(self) -> None:
        """Reset the peak of allocated memory. By default, do nothing."""
        return

    def peak(self) -> int | None:
        """Return the peak of allocated bytes; None if the device does not count them."""
        return None

    @abstractmethod
    def to_host(self, tensor: torch.Tensor) -> OnHost:
        """Start to copy a tensor to the host.

        The result is always a copy, because some models overwrite tensors that a module returned.
        """

    def upload(self, tensor: torch.Tensor) -> OnDevice:
        """Start to copy an input to the device, ahead of the forward pass.

        By default the forward pass moves its input itself.
        """
        return OnDevice(tensor)


def duplicate(tensor: torch.Tensor) -> OnHost:
    """Copy a tensor on its own device, for a thread that reads it there.

    The thread's operations run after the copy, in the device's default stream.
    """
    return OnHost(tensor.detach().clone())
