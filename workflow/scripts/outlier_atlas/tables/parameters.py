"""The settings that a table's file names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from outlier_atlas.tables.table import PARAMETERS, Table


def parameters(folder: Path, table: Table) -> dict[str, Any]:
    """The blocks of `detection` that a table's numbers depend on; empty where there are none."""
    metadata = pq.read_schema(folder / f"{table.name}.parquet").metadata
    return dict(json.loads(metadata.get(PARAMETERS.encode(), b"{}")).get("detection", {}))
