"""The description of a criterion or measure: its name, tables and settings."""

from __future__ import annotations

from dataclasses import dataclass

from outlier_atlas.tables.table import Table


@dataclass(frozen=True)
class Description:
    """The description of a criterion or measure: its name and its tables.

    Attributes:
        name: name of the folder, and of the block in the section `detection` if there is one.
        tables: the tables, in the order of the data dictionary.
        settings: the blocks of the section `detection` that the numbers depend on, except
            `exclude` and `bootstrap`.
        finding: plural noun for the findings of a criterion, such as `channels`; empty for a
            measure, which has no findings.
        compared: the tables that the report reads from another run to compare two runs.
    """

    name: str
    tables: tuple[Table, ...]
    settings: tuple[str, ...] = ()
    finding: str = ""
    compared: tuple[Table, ...] = ()
