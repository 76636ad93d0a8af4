"""The version of a run's store, which tells whether this version of the project can read it.

Light to import: the Snakefile asks before any job runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from outlier_atlas.files import DamagedFileError, read_record
from outlier_atlas.store.run_files import RunFiles

STORE_VERSION = 2
"""The version of the stores that this code makes; raised when the form of a store changes. Stores
without a version have version 1: the last dimension of all of their sites is called `channel`."""

KEY = "store_version"
"""The attribute of the store's root group, and the key of the metadata's record, that has the
version."""


def version_of(run: Path) -> int | None:
    """Return the version of a run's store; None where there is no store yet, or no finished one.

    The record of the metadata is read first: its checksum covers the version.

    Raises:
        ValueError: the version is not a number.
    """
    files = RunFiles(run)
    try:
        return int(read_record(files.metadata_record)[KEY])
    except (OSError, DamagedFileError, KeyError, TypeError):
        pass  # an older store, or a damaged one
    path = files.activations / "zarr.json"
    try:
        attributes: dict[str, Any] = json.loads(path.read_text("utf-8"))["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(attributes, dict) or not attributes:
        return None
    version = attributes.get(KEY, 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(
            f"{path}: its {KEY} is {version!r}, which no version of Outlier Atlas writes; delete "
            f"{files.activations}, or use another run.name"
        )
    return version


def refuse_newer(run: Path) -> None:
    """Check that this version of the project can read and continue a run.

    Raises:
        ValueError: a newer version of the project made it.
    """
    version = version_of(run)
    if version is not None and version > STORE_VERSION:
        raise ValueError(
            f"{run}: made by a newer version of Outlier Atlas (its store has version {version}, "
            f"this one reads up to {STORE_VERSION}); update Outlier Atlas, use another run.name, "
            f"or delete the folder"
        )


def is_older(run: Path) -> bool:
    """Whether an older version of the project made a run."""
    version = version_of(run)
    return version is not None and version < STORE_VERSION
