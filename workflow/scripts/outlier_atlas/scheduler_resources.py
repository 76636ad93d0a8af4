"""Resources that a job requests from a scheduler, from the plan in the store's record.

Imports nothing heavy: the Snakefile calls these functions, and needs neither the model nor torch.
"""

from __future__ import annotations

import math
from pathlib import Path

from outlier_atlas.devices.registry import is_host
from outlier_atlas.files import read_once
from outlier_atlas.plan.group import ENOUGH_TOKENS, GroupPlan, recorded
from outlier_atlas.settings.configuration import Settings

MARGIN = 0.25
"""Share added to the plan, and added again for each earlier attempt. A scheduler kills a job where
a machine would only swap, and the plan is right to a tenth."""

CUDA_BYTES = 2 * 2**30
"""Host memory of CUDA's libraries: a guess, on the safe side."""


_plans = read_once(recorded)
"""Plan of each layer group from a store's record, which thousands of jobs ask for."""


def gpus(record: Path, group: int, settings: Settings) -> int:
    """Return the GPUs that a job spreads over: at most one for each of its layers.

    Args:
        record: the record of the store; without it the number of layers is not known yet.
        group: index of the layer group.
        settings: the whole configuration.
    """
    wanted = settings.execution.gpus_per_job
    plans = _plans(record) if record.exists() else []
    if group >= len(plans):
        return wanted
    first, last = plans[group].layers
    return min(wanted, last - first + 1)


def memory_mb(record: Path, group: int, settings: Settings, attempt: int) -> int:
    """Return the megabytes of host memory for the job of a layer group, more for each attempt.

    Raises:
        FileNotFoundError: there is no record yet.
    """
    plans = _plans(record)
    return _megabytes(plans[group], settings, attempt) if group < len(plans) else 0


def most_memory_mb(record: Path, settings: Settings, attempt: int) -> int:
    """Return the megabytes of host memory for a job that loads one layer group after the other.

    Raises:
        FileNotFoundError: there is no record yet.
    """
    return max((_megabytes(plan, settings, attempt) for plan in _plans(record)), default=0)


def _megabytes(plan: GroupPlan, settings: Settings, attempt: int) -> int:
    host = is_host(settings.execution.device)
    plan = plan.batched(_sequences(settings, host))
    predicted = plan.host_alone if host else plan.host + CUDA_BYTES
    return math.ceil(predicted * (1 + MARGIN * attempt) / 1e6)


def _sequences(settings: Settings, host: bool) -> int:
    """Return the sequences of a batch; of `batch_size: auto` the largest number possible."""
    batch_size = settings.execution.batch_size
    if batch_size != "auto":
        return batch_size
    most = ENOUGH_TOKENS[host] // settings.dataset.sequence_length
    return max(1, min(most, settings.dataset.sequences))
