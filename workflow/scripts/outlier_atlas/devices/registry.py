"""The devices that there are: each by the name that torch gives it.

A new kind of device is a class of its own (`interface.Device`) with a line in `named`, one in
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


@cache
def named(name: str) -> Device:
    """Return the device of a name such as `cuda:0`, `mps` or `cpu`."""
    kind = name.partition(":")[0]
    if kind == "cuda":
        from outlier_atlas.devices.cuda import Cuda

        return Cuda(name)
    return Mps(name) if kind == "mps" else Cpu(name)


def of(tensor: torch.Tensor) -> Device:
    """Return the device that a tensor is on."""
    return named(str(tensor.device))


def candidates(wanted: str) -> list[str]:
    """Return the names of this machine's devices of a wanted kind, without leasing any.

    Args:
        wanted: `execution.device`; `auto` takes GPUs where there are any.

    Returns:
        Every GPU, or the one other device; nothing if the machine has none of the wanted kind.
    """
    if wanted in ("auto", "cuda") and (gpus := visible_gpus()):
        return [f"cuda:{index}" for index in range(len(gpus))]
    if wanted in ("auto", "mps") and Mps.exists():
        return ["mps"]
    return [HOST] if wanted in ("auto", "cpu") else []
