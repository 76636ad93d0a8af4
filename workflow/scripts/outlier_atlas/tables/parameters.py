"""The settings in the metadata of a table's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from outlier_atlas.tables.table import PARAMETERS, Table


def parameters(folder: Path, table: Table) -> dict[str, Any]:
    """Return the blocks of `detection` that a table's numbers depend on, if there are any."""
    metadata = pq.read_schema(folder / f"{table.name}.parquet").metadata
    return dict(json.loads(metadata.get(PARAMETERS.encode(), b"{}")).get("detection", {}))
