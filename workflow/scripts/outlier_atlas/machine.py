"""Name of this machine's processor: equal machines have the same one."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path


@cache
def machine() -> str:
    """Return the model of the CPU and the number of its cores: `AMD EPYC, 2 cores`."""
    cores = os.cpu_count() or 1
    return f"{_model()}, {cores} {'core' if cores == 1 else 'cores'}"


def _model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine() or "unknown CPU"
