"""The record of the number that `extraction.layer_groups: auto` stands for in a run.

Imports nothing heavy: the Snakefile reads the record, where neither the model nor torch need be.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from outlier_atlas.files import DamagedFileError, canonical, read_record, write_record
from outlier_atlas.settings.configuration import Settings
from outlier_atlas.store.run_files import RunFiles

log = logging.getLogger(__name__)

CHOICE = RunFiles(Path()).layer_groups_record
"""The record, seen from the folder of a run."""

PLAN_VERSION = 1
"""Version of the plan's sizes. A change that makes the plan larger raises it by one, and every
choice is then made again."""

LAYER_GROUPS, CHOSEN_FROM = "layer_groups", "chosen_from"


def chosen_from(settings: Settings) -> dict[str, Any]:
    """Return everything in a configuration that a job's plan depends on, and the plan's version.

    Free memory is no part of it: a run that has begun keeps its layer groups.
    """
    extraction, dataset = settings.extraction, settings.dataset
    measured = {"sites", "layers", "perplexity", "sequence_shards"}
    placed = {"device", "device_memory", "gpus_per_job", "batch_size"}
    return {
        "plan": PLAN_VERSION,
        "dtype": settings.model.dtype,
        "dataset": dataset.model_dump(mode="json", include={"sequence_length", "packing"}),
        "extraction": extraction.model_dump(mode="json", include=measured),
        "store": list(extraction.stored),
        "chunk_tokens": settings.chunk_tokens,
        "sink_tokens": extraction.advanced.sink_tokens,
        "ablation": settings.ablation.sequences > 0,
        "execution": settings.execution.model_dump(mode="json", include=placed),
    }


def wanted(settings: Settings, model_record: Path) -> dict[str, Any]:
    """Return what a number is chosen from: the configuration, and the model itself."""
    return chosen_from(settings) | {"model": read_record(model_record).get("fingerprint")}


def read(record: Path) -> int | None:
    """Return the recorded number; None where there is no record, or a damaged one."""
    return _number(_known(record))


def recorded(record: Path, wanted: Mapping[str, Any]) -> int | None:
    """Return the recorded number where it was chosen from `wanted`; None where it was not."""
    known = _known(record)
    return _number(known) if known.get(CHOSEN_FROM) == _normal(wanted) else None


def write(record: Path, number: int, wanted: Mapping[str, Any]) -> None:
    """Record a choice, without the free memory, so that equal choices give equal bytes.

    Args:
        record: path of the record.
        number: number of layer groups.
        wanted: what the number was chosen from.
    """
    write_record(record, {LAYER_GROUPS: number, CHOSEN_FROM: wanted})


def keep(record: Path, wanted: Mapping[str, Any]) -> bool:
    """Keep the recorded number if it was chosen from `wanted`, and return whether it was.

    The record is written again with the same bytes: it is newer than what it was compared with.
    """
    number = recorded(record, wanted)
    if number is None:
        return False
    write_record(record, read_record(record))
    log.info("extraction.layer_groups: auto stays %d, as chosen before (%s)", number, record)
    return True


def damage(record: Path, remove: bool, say: Callable[[str], object]) -> dict[str, str]:
    """Return what a damaged record adds to the inputs of the choice; nothing once it is removed.

    Args:
        record: path of the record.
        remove: whether to remove and name a damaged record; otherwise it is made out of date.
        say: takes the line about a removed record.
    """
    try:
        read_record(record)
    except FileNotFoundError:
        return {}
    except DamagedFileError as damaged:
        if not remove:
            return {"record": "damaged"}
        record.unlink(missing_ok=True)
        say(f"{damaged}; the number of layer groups is chosen again")
    return {}


def _known(record: Path) -> dict[str, Any]:
    try:
        return read_record(record)
    except (OSError, DamagedFileError):
        return {}


def _number(known: Mapping[str, Any]) -> int | None:
    number = known.get(LAYER_GROUPS)
    return number if isinstance(number, int) else None


def _normal(content: Mapping[str, Any]) -> Any:
    """Return content in the form in which a record returns it."""
    return json.loads(canonical(content))
