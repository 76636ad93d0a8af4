"""Cache of the architecture of a recorded model, in the process and on disk.

Describing an architecture takes seconds (`architecture.describe`), and each job needs it. The
result depends only on the model's configuration and on code. A file in `resources/architectures`
stores it together with a digest of both. The file is no input of any rule: if it is missing,
damaged or of another digest, the architecture is described again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import PreTrainedModel

from outlier_atlas.checkpoint.source import ARCHITECTURES, load_config, locate
from outlier_atlas.files import (
    DamagedFileError,
    content,
    fingerprint,
    read_record,
    write_record,
)
from outlier_atlas.roles.architecture import Architecture, describe
from outlier_atlas.roles.block_sites import Tap
from outlier_atlas.roles.lm_head import HeadParts
from outlier_atlas.roles.positions import Positions

if TYPE_CHECKING:
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers")


def described(
    record: Mapping[str, Any], resources: Path, trust_remote_code: bool
) -> tuple[Path, PretrainedConfig, Architecture]:
    """Return the folder, the configuration and the architecture of a recorded model.

    No weight is read.

    Raises:
        ValueError: the folder no longer exists, or its model is no supported decoder.
    """
    folder = locate(record, resources)
    modified = (folder / "config.json").stat().st_mtime_ns
    known = record.get("fingerprint")  # a hub model that is only planned has none
    name = None if known is None else resources / ARCHITECTURES / f"{known[:32]}.json"
    return folder, *_described(folder, trust_remote_code, modified, name)


@lru_cache(maxsize=1)
def _described(
    folder: Path, trust_remote_code: bool, modified: int, file: Path | None
) -> tuple[PretrainedConfig, Architecture]:
    config = load_config(folder, trust_remote_code)
    if trust_remote_code or file is None:  # the code of a checkpoint is not part of the digest
        return config, describe(config, trust_remote_code)
    key = fingerprint([_code(), hashlib.sha256(content(folder / "config.json") or b"").hexdigest()])
    architecture = _read(file, key)
    if architecture is None:
        architecture = describe(config)
        _write(file, key, architecture)
    return config, architecture


@cache
def _code() -> str:
    """Return a digest of the code that an architecture depends on."""
    library = Path(__file__).parents[1]
    own = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("roles", "compat", "settings")
        for path in sorted((library / folder).glob("*.py"))
    }
    return fingerprint([own, {name: version(name) for name in LIBRARIES}])


def _read(file: Path, key: str) -> Architecture | None:
    try:
        record = read_record(file)
        if record["key"] != key:
            return None
        return from_json(record["architecture"])
    except (OSError, DamagedFileError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _write(file: Path, key: str, architecture: Architecture) -> None:
    entries = to_json(architecture)
    if entries is not None:
        with suppress(OSError):  # jobs work without the file
            write_record(file, {"key": key, "architecture": entries})


def to_json(architecture: Architecture) -> dict[str, Any] | None:
    """Return an architecture as JSON; None if its class does not belong to transformers."""
    model_class = architecture.model_class.__name__
    if getattr(transformers, model_class, None) is not architecture.model_class:
        return None
    plain = {field.name: getattr(architecture, field.name) for field in fields(architecture)}
    positions = architecture.positions
    return plain | {
        "model_class": model_class,
        "taps": [[asdict(tap) for tap in taps.values()] for taps in architecture.taps],
        "boundary_dtypes": [
            None if dtype is None else str(dtype).removeprefix("torch.")
            for dtype in architecture.boundary_dtypes
        ],
        "positions": None if positions is None else asdict(positions),
        "components": sorted(architecture.components),
        "readers": [list(readers.items()) for readers in architecture.readers],
        "head": asdict(architecture.head),
    }


def from_json(entries: Mapping[str, Any]) -> Architecture:
    """Return the architecture that `to_json` has written.

    Raises:
        ValueError: transformers has no such class.
    """
    model_class = getattr(transformers, entries["model_class"], None)
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise ValueError(f"{entries['model_class']}: no model of transformers")
    positions, head = entries["positions"], entries["head"]
    own = {
        "model_class": model_class,
        "tuple_lengths": tuple(entries["tuple_lengths"]),
        "taps": tuple({tap["site"]: _tap(tap) for tap in taps} for taps in entries["taps"]),
        "boundary_dtypes": tuple(
            None if dtype is None else getattr(torch, dtype) for dtype in entries["boundary_dtypes"]
        ),
        "skipped": tuple(entries["skipped"]),
        "positions": None if positions is None else Positions(**positions),
        "components": frozenset(entries["components"]),
        "readers": tuple(dict(readers) for readers in entries["readers"]),
        "head": HeadParts(**head | {"modules": tuple(head["modules"])}),
    }
    return Architecture(**{**entries, **own})


def _tap(entries: Mapping[str, Any]) -> Tap:
    ranges = entries["ranges"]
    pairs = None if ranges is None else tuple((first, stop) for first, stop in ranges)
    return Tap(**{**entries, "ranges": pairs})
