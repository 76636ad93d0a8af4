"""NVIDIA or AMD GPU; torch calls both `cuda`."""

from __future__ import annotations

from functools import cached_property

import torch

from outlier_atlas.devices.interface import Device, OnDevice, OnHost


class Cuda(Device):
    """Device with its own memory and streams.

    Copies run on separate streams, through pinned memory, during the forward pass.
    """

    @property
    def title(self) -> str:
        return str(torch.cuda.get_device_name(self.name))

    def free_memory(self) -> int:
        return int(torch.cuda.mem_get_info(self.name)[0])

    def total_memory(self) -> int:
        return int(torch.cuda.get_device_properties(self.name).total_memory)

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.name)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.name)

    def to_host(self, tensor: torch.Tensor) -> OnHost:
        # The clone runs in the stream of the forward pass, before any operation that overwrites
        # the tensor.
        clone = tensor.detach().clone()
        host = torch.empty(clone.shape, dtype=clone.dtype, pin_memory=True)
        self._downloads.wait_stream(torch.cuda.current_stream(clone.device))
        with torch.cuda.stream(self._downloads):
            host.copy_(clone, non_blocking=True)
            clone.record_stream(self._downloads)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._downloads)
        return OnHost(host, copied)

    def upload(self, tensor: torch.Tensor) -> OnDevice:
        with torch.cuda.stream(self._uploads):
            # torch keeps pinned memory until the copy from it is complete.
            moved = tensor.pin_memory().to(torch.device(self.name), non_blocking=True)
            return OnDevice(moved, self._uploads.record_event())

    @cached_property
    def _downloads(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(torch.device(self.name))  # type: ignore[no-untyped-call]

    @cached_property
    def _uploads(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(torch.device(self.name))  # type: ignore[no-untyped-call]
