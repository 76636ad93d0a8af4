"""Registry of devices by their names in torch.

A new kind of device needs a class (`interface.Device`), a line in `named`, a line in
`candidates`, and its name in `settings/configuration.py`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from outlier_atlas.devices.cpu import Cpu
from outlier_atlas.devices.gpus import visible_gpus
from outlier_atlas.devices.interface import Device
from outlier_atlas.devices.mps import Mps

if TYPE_CHECKING:
    import torch

HOST = "cpu"
"""Name of the host's CPU."""

UNIFIED = "mps"
"""Name of the device with the host's memory."""


@cache
def named(name: str) -> Device:
    """Return the device with a name such as `cuda:0`, `mps` or `cpu`."""
    kind = name.partition(":")[0]
    if kind == "cuda":
        from outlier_atlas.devices.cuda import Cuda

        return Cuda(name)
    return Mps(name) if kind == UNIFIED else Cpu(name)


def is_host(name: str) -> bool:
    """Return whether a device, or the value of `execution.device`, is the host's CPU."""
    return name == HOST


def is_unified(name: str) -> bool:
    """Return whether a device that is not the host uses the memory of the host."""
    return name == UNIFIED


def of(tensor: torch.Tensor) -> Device:
    """Return the device that a tensor is on."""
    return named(str(tensor.device))


def candidates(kind: str) -> list[str]:
    """Return the names of this machine's devices of a kind, without leasing any.

    Args:
        kind: `execution.device`; `auto` prefers GPUs.

    Returns:
        All GPUs, or the one other device; empty if the machine has none of the kind.
    """
    if kind in ("auto", "cuda") and (gpus := visible_gpus()):
        return [f"cuda:{index}" for index in range(len(gpus))]
    if kind in ("auto", "mps") and Mps.exists():
        return [UNIFIED]
    return [HOST] if kind in ("auto", "cpu") else []
