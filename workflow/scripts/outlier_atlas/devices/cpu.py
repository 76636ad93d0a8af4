"""CPU of the host as a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outlier_atlas.devices.interface import Device, OnHost

if TYPE_CHECKING:
    import torch


class Cpu(Device):
    """CPU of the host; the machine and the limits of the process bound its memory."""

    is_host = True
    shares_host_memory = True

    def free_memory(self) -> int | None:
        return None

    def total_memory(self) -> int | None:
        return None

    def to_host(self, tensor: torch.Tensor) -> OnHost:
        return OnHost(tensor.to("cpu", copy=True))
