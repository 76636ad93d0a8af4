"""What an extraction job asks a scheduler for: by the plan that the store's record holds.

Imports nothing heavy: the Snakefile calls it, where neither the model nor torch need be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from outlier_atlas.files import read_record
from outlier_atlas.plan.group import GroupPlan
from outlier_atlas.settings.configuration import Settings

GROUPS = "memory"
"""Key of the store's record: each layer group's plan, in batches of one sequence."""

MARGIN = 0.25
"""Share added to the plan, and once more for each attempt before: a scheduler kills where a machine
would only swap, and the plan is right to a tenth."""

CUDA_BYTES = 2 * 2**30
"""What CUDA's libraries take of the host: a guess, on the safe side."""

ENOUGH_TOKENS = {True: 1024, False: 16384}
"""Tokens of a batch beyond which a larger one gains nothing, on the CPU and on a device."""


def recorded(groups: Sequence[GroupPlan]) -> dict[str, Any]:
    """Plans in batches of one sequence, as `GROUPS` of a record."""
    return {GROUPS: [asdict(group) for group in groups]}


def gpus(record: Path, group: int, settings: Settings) -> int:
    """The GPUs that a job spreads over: no more than it has layers.

    Args:
        record: of the store; without one the number of layers is not known yet.
    """
    wanted = settings.execution.gpus_per_job
    planned = _planned(record, group) if record.exists() else None
    if planned is None:
        return wanted
    first, last = planned.layers
    return min(wanted, last - first + 1)


def memory_mb(record: Path, group: int, settings: Settings, attempt: int) -> int:
    """Megabytes of the host for a job of a layer group, more for each attempt.

    Raises:
        FileNotFoundError: there is no record yet.
    """
    planned = _planned(record, group)
    if planned is None:
        return 0
    host = settings.execution.device == "cpu"
    planned = planned.batched(_sequences(settings, host))
    predicted = planned.host_alone if host else planned.host + CUDA_BYTES
    return math.ceil(predicted * (1 + MARGIN * attempt) / 1e6)


def most_memory_mb(record: Path, settings: Settings, attempt: int) -> int:
    """Megabytes of the host for a job that has the layer groups one after the other.

    Raises:
        FileNotFoundError: there is no record yet.
    """
    try:
        count = len(read_record(record)[GROUPS])
    except (ValueError, KeyError):
        return 0  # damaged, or of older code: see `_planned`
    return max(memory_mb(record, group, settings, attempt) for group in range(count))


def _planned(record: Path, group: int) -> GroupPlan | None:
    """Of a record that is damaged or of older code none: it is made again before the job runs."""
    try:
        return GroupPlan(**read_record(record)[GROUPS][group])
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _sequences(settings: Settings, host: bool) -> int:
    """Of a batch; of `batch_size: auto` the most that it can be."""
    batch_size = settings.execution.batch_size
    if batch_size != "auto":
        return batch_size
    most = ENOUGH_TOKENS[host] // settings.dataset.sequence_length
    return max(1, min(most, settings.dataset.sequences))
