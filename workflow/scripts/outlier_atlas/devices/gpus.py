"""GPUs that this process may use, and their names."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

MIG = "MIG-"
"""Prefix of the names of GPU partitions (multi-instance GPU)."""


def visible_gpus() -> list[str]:
    """Return the CUDA devices that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    if torch.version.cuda is None:
        return []
    # By default CUDA numbers the fastest GPU first. The lease uses the names of `nvidia-smi`, which
    # numbers GPUs by slot.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    names = [gpu.strip() for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if all(gpu.startswith(MIG) for gpu in names):
        # Counting them would initialize CUDA, which shows a process one partition and from then on
        # no other.
        return names
    count = torch.cuda.device_count()  # uses the driver's management library, creates no context
    return names[:count] if any(names) else [str(index) for index in range(count)]


def identities(gpus: Sequence[str]) -> list[str]:
    """Return names of GPUs that are equal in all jobs: one job's `1` may be another's `GPU-5a3b`.

    Args:
        gpus: names as in `CUDA_VISIBLE_DEVICES`.

    Returns:
        The UUID of each GPU; without `nvidia-smi` the unchanged name.
    """
    uuids = _uuids()
    names_by_prefix = (next((u for u in uuids.values() if u.startswith(gpu)), gpu) for gpu in gpus)
    return [uuids.get(gpu, by_prefix) for gpu, by_prefix in zip(gpus, names_by_prefix, strict=True)]


def _uuids() -> dict[str, str]:
    """Return the UUIDs of GPUs by index; empty without `nvidia-smi`."""
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(line.split(", ", 1) for line in output.stdout.splitlines())
