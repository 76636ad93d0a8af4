"""The settings in the metadata of a table's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from outlier_atlas.tables.files import file_schema
from outlier_atlas.tables.table import PARAMETERS, Table


def parameters(folder: Path, table: Table) -> dict[str, Any]:
    """Return the blocks of `detection` that a table's numbers depend on, if there are any."""
    metadata = file_schema(folder, table).metadata
    return dict(json.loads(metadata.get(PARAMETERS.encode(), b"{}")).get("detection", {}))
