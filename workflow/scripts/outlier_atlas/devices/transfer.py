"""Copies of tensors to the device and back to the host, during the forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class OnHost:
    """A copy of a tensor in host memory, perhaps still under way; or one that stays on its device.

    Attributes:
        values: the copy; read it after `wait`.
    """

    values: torch.Tensor
    copied: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Until the copy is complete."""
        if self.copied is not None:
            self.copied.synchronize()


class Transfer:
    """Copies tensors to the host, from whatever device they are on.

    On CUDA the copy runs on a stream of its own into pinned memory, while the forward pass goes on;
    elsewhere it is complete when it is returned. It is a copy in any case: some models overwrite
    what a module returned.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __call__(self, tensor: torch.Tensor) -> OnHost:
        """Start to copy a tensor."""
        if tensor.device.type != "cuda":
            return OnHost(tensor.to("cpu", copy=True))
        # The clone is made in the forward's own order, before anything can overwrite the tensor.
        clone = tensor.detach().clone()
        host = torch.empty(clone.shape, dtype=clone.dtype, pin_memory=True)
        stream = self._stream(clone.device)
        stream.wait_stream(torch.cuda.current_stream(clone.device))
        with torch.cuda.stream(stream):
            host.copy_(clone, non_blocking=True)
            clone.record_stream(stream)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(stream)
        return OnHost(host, copied)

    def copy(self, tensor: torch.Tensor) -> OnHost:
        """Copy a tensor on the device that it is on, for a thread that reads it there.

        That thread's work follows in the order of the device's default stream, as the forward's.
        """
        return OnHost(tensor.detach().clone())

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._streams[device]


@dataclass(frozen=True)
class OnDevice:
    """An input on the device of the forward pass, perhaps still on its way there."""

    values: torch.Tensor
    copied: torch.cuda.Event | None = None

    def take(self) -> torch.Tensor:
        """The input: what the caller's stream does from here on waits for the copy."""
        if self.copied is not None:
            stream = torch.cuda.current_stream(self.values.device)
            stream.wait_event(self.copied)
            self.values.record_stream(stream)
        return self.values


class Upload:
    """Copies inputs to the device of the forward pass, ahead of it.

    On CUDA the copy runs from pinned memory, on a stream of its own; elsewhere the forward pass
    moves its input itself.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._stream: torch.cuda.Stream | None = None
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def __call__(self, tensor: torch.Tensor) -> OnDevice:
        """Start to copy a tensor."""
        if self._stream is None:
            return OnDevice(tensor)
        with torch.cuda.stream(self._stream):
            # torch gives no pinned memory away again before the copy is complete.
            moved = tensor.pin_memory().to(self._device, non_blocking=True)
            return OnDevice(moved, self._stream.record_event())


class Float32:
    """Gives tensors as float32 values, exactly, in memory that it reuses for the next tensor.

    bfloat16 is widened by a shift of its bits in numpy. torch would start threads for it, next to
    those of the forward pass, and new memory for each tensor costs as much as the conversion.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint32)

    def __call__(self, values: torch.Tensor) -> NDArray[np.float32]:
        """The values of a tensor; valid until the next call."""
        if values.dtype != torch.bfloat16:
            return values.float().numpy()
        codes = values.contiguous().view(torch.int16).numpy().view(np.uint16)
        if self._memory.size < codes.size:
            self._memory = np.empty(codes.size, np.uint32)
        wide = self._memory[: codes.size].reshape(codes.shape)
        np.left_shift(codes, np.uint32(16), out=wide, dtype=np.uint32)
        return wide.view(np.float32)
