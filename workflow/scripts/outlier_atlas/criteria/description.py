"""What the registry of tables knows of a criterion or measure."""

from __future__ import annotations

from dataclasses import dataclass

from outlier_atlas.tables.table import Table


@dataclass(frozen=True)
class Description:
    """A criterion or measure by its name and its tables.

    Attributes:
        name: name of its folder, and of its block of the section `detection` where it has one.
        tables: its tables, in the order of the data dictionary.
        settings: the blocks of the section `detection` that its numbers depend on, `exclude` and
            `bootstrap` apart.
        finding: plural noun of what a criterion finds, such as `channels`; empty of a measure,
            which finds nothing.
        compared: those of its tables that the report reads of another run to compare two runs.
    """

    name: str
    tables: tuple[Table, ...]
    settings: tuple[str, ...] = ()
    finding: str = ""
    compared: tuple[Table, ...] = ()
