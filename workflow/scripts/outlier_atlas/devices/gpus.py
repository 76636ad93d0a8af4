"""The GPUs that this process may use, and their names."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

MIG = "MIG-"
"""How the names of parts of a GPU begin."""


def visible_gpus() -> list[str]:
    """The CUDA devices that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    if torch.version.cuda is None:
        return []
    # CUDA numbers the fastest first; `nvidia-smi`, which names them for the lease, by their slot.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    named = [gpu.strip() for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if all(gpu.startswith(MIG) for gpu in named):
        # torch would ask CUDA, which shows a process one part of a GPU, and from then on no other.
        return named
    count = torch.cuda.device_count()  # asks the driver's management library; makes no context
    return named[:count] if any(named) else [str(index) for index in range(count)]


def identities(gpus: Sequence[str]) -> list[str]:
    """Names of GPUs that are the same in every job: one job's `1` may be another's `GPU-5a3b`.

    Args:
        gpus: as `CUDA_VISIBLE_DEVICES` names them.

    Returns:
        The UUID of each; without `nvidia-smi` its name as it is.
    """
    uuids = _uuids()
    by_beginning = (next((u for u in uuids.values() if u.startswith(gpu)), gpu) for gpu in gpus)
    return [uuids.get(gpu, whole) for gpu, whole in zip(gpus, by_beginning, strict=True)]


def _uuids() -> dict[str, str]:
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(line.split(", ", 1) for line in said.stdout.splitlines())
