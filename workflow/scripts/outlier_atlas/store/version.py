"""Version of a run's store, which decides whether this version of the project can read it.

The Snakefile checks the version before any job runs, so this module imports no large packages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from outlier_atlas.files import DamagedFileError, read_record
from outlier_atlas.store.run_files import RunFiles

STORE_VERSION = 3
"""Version of the stores that this code writes.

Raise the version if the format of a store changes. Stores without a version have version 1, in
which the last dimension of all sites is called `channel`. In version 2, no array has shards.
"""

KEY = "store_version"
"""Name of the version in the attributes of the root group and in the record of the metadata."""


def version_of(run: Path) -> int | None:
    """Return the version of a run's store; None without a complete store.

    The record of the metadata is read first, because its checksum covers the version.

    Raises:
        ValueError: the version is not a number.
    """
    files = RunFiles(run)
    try:
        return int(read_record(files.metadata_record)[KEY])
    except (OSError, DamagedFileError, KeyError, TypeError):
        pass  # an older or damaged store
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
        ValueError: a newer version of the project wrote the run.
    """
    version = version_of(run)
    if version is not None and version > STORE_VERSION:
        raise ValueError(
            f"{run}: made by a newer version of Outlier Atlas (its store has version {version}, "
            f"this one reads up to {STORE_VERSION}); update Outlier Atlas, use another run.name, "
            f"or delete the folder"
        )


def is_older(run: Path) -> bool:
    """Return whether an older version of the project wrote a run."""
    version = version_of(run)
    return version is not None and version < STORE_VERSION
