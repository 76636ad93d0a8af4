"""The settings that the numbers of each table depend on; its Parquet file names them."""

from __future__ import annotations

from collections.abc import Mapping

from outlier_atlas.criteria.tables import CRITERIA, DESCRIPTIONS
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.tables import Table

BLOCKS: Mapping[str, tuple[str, ...]] = {
    CRITERIA.name: tuple(described.name for described in DESCRIPTIONS if described.finding),
    **{table.name: described.settings for described in DESCRIPTIONS for table in described.tables},
}
"""The blocks of the section `detection` behind each table, `exclude` and `bootstrap` apart."""


def with_parameters(table: Table, settings: DetectionSettings) -> Table:
    """A table with the settings that its numbers depend on."""
    blocks = BLOCKS[table.name]
    if table.has_intervals:
        blocks = (*blocks, "bootstrap")
    return table.under(settings.model_dump(mode="json", include=set(blocks)) if blocks else {})
