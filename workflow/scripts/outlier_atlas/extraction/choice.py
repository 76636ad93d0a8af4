"""Record of the number of layer groups that `extraction.layer_groups: auto` chose for a run.

The Snakefile reads the record without the model and without torch, so this module imports no large
packages.
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
"""Path of the record, relative to the folder of a run."""

PLAN_VERSION = 2
"""Version of the sizes in the plan.

Raise the version by one if a change makes the plan larger. Every choice is then repeated.
"""

LAYER_GROUPS, CHOSEN_FROM = "layer_groups", "chosen_from"


def chosen_from(settings: Settings) -> dict[str, Any]:
    """Return the settings that the plan of a job depends on, and the version of the plan.

    Free memory is not included, so a run that has started keeps its layer groups.
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


def inputs_of(settings: Settings, model_record: Path) -> dict[str, Any]:
    """Return the inputs of a choice: the settings and the fingerprint of the model."""
    return chosen_from(settings) | {"model": read_record(model_record).get("fingerprint")}


def read(record: Path) -> int | None:
    """Return the recorded number; None if the record is missing or damaged."""
    return _number(_known(record))


def recorded(record: Path, inputs: Mapping[str, Any]) -> int | None:
    """Return the recorded number if it was chosen from `inputs`; otherwise None."""
    known = _known(record)
    return _number(known) if known.get(CHOSEN_FROM) == _normal(inputs) else None


def write(record: Path, number: int, inputs: Mapping[str, Any]) -> None:
    """Record a choice. Equal choices give equal bytes, because free memory is not recorded.

    Args:
        record: path of the record.
        number: number of layer groups.
        inputs: inputs of the choice.
    """
    write_record(record, {LAYER_GROUPS: number, CHOSEN_FROM: inputs})


def keep(record: Path, inputs: Mapping[str, Any]) -> bool:
    """Keep the recorded number if it was chosen from `inputs`, and return whether it was.

    The record is rewritten with the same bytes, so that it is newer than its inputs.
    """
    number = recorded(record, inputs)
    if number is None:
        return False
    write_record(record, read_record(record))
    log.info("extraction.layer_groups: auto stays %d, as chosen before (%s)", number, record)
    return True


def damage(record: Path, remove: bool, say: Callable[[str], object]) -> dict[str, str]:
    """Return the entry that a damaged record adds to the inputs of the choice; empty without one.

    Args:
        record: path of the record.
        remove: whether to remove a damaged record and report it. Otherwise the returned entry
            makes the choice out of date.
        say: a function that reports the removal of a record.
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
    """Return content after a round trip through JSON, as a record returns it."""
    return json.loads(canonical(content))
