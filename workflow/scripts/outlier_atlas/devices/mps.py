"""GPU of an Apple chip, which shares the memory of the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outlier_atlas.devices.interface import Device, OnHost

if TYPE_CHECKING:
    import torch


class Mps(Device):
    """Device with unified memory and without float64."""

    shares_host_memory = True
    has_float64 = False

    @staticmethod
    def exists() -> bool:
        """Return whether this machine has such a device."""
        import torch

        return torch.backends.mps.is_available()

    def free_memory(self) -> int | None:
        return None

    def total_memory(self) -> int | None:
        return None

    def to_host(self, tensor: torch.Tensor) -> OnHost:
        return OnHost(tensor.to("cpu", copy=True))
