"""Files of two runs that are compared, and checks that the runs are comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlier_atlas import products, tables
from outlier_atlas.criteria.tables import CRITERIA, DESCRIPTIONS
from outlier_atlas.files import DamagedFileError, read_record
from outlier_atlas.sanitize import visible
from outlier_atlas.store.run_files import STORE_RECORD, TOKENS_RECORD, RunFiles
from outlier_atlas.store.version import refuse_newer
from outlier_atlas.tables import Table

Row = dict[str, Any]

TABLES = (CRITERIA, *(table for described in DESCRIPTIONS for table in described.compared))
NOT_MEASURED = "not measured"
"""Text in place of a number that a run does not have."""

_TABLES_FOLDER = RunFiles(Path()).tables
FILES = (
    *(f"{_TABLES_FOLDER}/{table.name}.parquet" for table in TABLES),
    TOKENS_RECORD,
    STORE_RECORD,
)
"""Files that are read from the folder of the other run."""


def refuse_missing(folder: Path) -> None:
    """Refuse a run whose files are missing.

    Args:
        folder: folder of the other run.

    Raises:
        ValueError: a file is missing. The message names the run to complete first.
    """
    absent = [file for file in FILES if not (folder / file).is_file()]
    if absent:
        raise ValueError(
            f"report.compare: {folder} has no {absent[0]}; run {folder.name} first "
            f"(make run CONFIG={folder.name}.yaml, or whatever its configuration is called), or "
            f"leave report.compare out"
        )


@dataclass(frozen=True)
class Side:
    """One of the two runs: its records, and the rows of the tables that are compared.

    Attributes:
        name: name of the run.
        by_table: rows of each table, by name of the table.
        left_out: sentence that names the excluded tokens.
        tokens: record of the tokens.
        store: record of the store.
    """

    name: str
    by_table: Mapping[str, Sequence[Row]]
    left_out: str
    tokens: Row
    store: Row

    @classmethod
    def read(cls, folder: Path) -> Side:
        """Read the tables and the records of a run.

        Raises:
            ValueError: another version of the project wrote the run, with other columns,
                definitions or records; or a file is damaged.
        """
        refuse_newer(folder)
        _refuse_damaged(folder)
        files = RunFiles(folder)
        for table in TABLES:
            tables.refuse_other_definitions(files.tables, table)
        rows = {t.name: tables.read(files.tables, t).to_pylist() for t in TABLES}
        left_out = tables.left_out(files.tables, CRITERIA)
        records = read_record(folder / TOKENS_RECORD), _store_record(folder)
        return cls(folder.name, rows, left_out, *records)

    @property
    def model(self) -> str:
        return str(self.store["model"]["source"])

    def rows(self, table: Table) -> Sequence[Row]:
        """Return the rows of a table, which must be one of `TABLES`."""
        return self.by_table[table.name]

    def criterion(self, name: str) -> Row:
        """Return the row of a criterion in the table `criteria`.

        Raises:
            ValueError: the table has no such criterion.
        """
        row = next((row for row in self.rows(CRITERIA) if row["criterion"] == name), None)
        if row is None:
            raise ValueError(
                f"report.compare: {self.name} was made by another version of Outlier Atlas, which "
                f"does not have the criterion {name!r}; run {self.name} again"
            )
        return row


def _refuse_damaged(folder: Path) -> None:
    files = [folder / file for file in FILES]
    try:
        products.check(sorted(RunFiles(folder).product_records.glob("*.json")), files)
    except DamagedFileError as error:
        # The file belongs to another run, so no rule of this run can write it again.
        raise ValueError(
            f"report.compare: {error.path} is damaged ({error.cause}); run {folder.name} again, "
            f"with `verify` first"
        ) from error


def _store_record(folder: Path) -> Row:
    record = read_record(folder / STORE_RECORD)
    lacking = [key for key in ("model", "channels", "dtype") if key not in record]
    if lacking:
        raise ValueError(
            f"report.compare: {folder / STORE_RECORD} does not say {lacking[0]}: an older "
            f"version of Outlier Atlas wrote it; run {folder.name} again"
        )
    return record


Both = tuple[Side, Side]
"""A pair of runs: this run and the other run."""


def refuse_other_shape(here: Side, there: Side) -> None:
    """Refuse runs whose models differ in the number of layers or channels.

    Raises:
        ValueError: the numbers differ, so layers or channels do not correspond.
    """
    common = [site for site in here.store["channels"] if site in there.store["channels"]]
    sizes: list[tuple[str, int, int]] = [
        ("layers", *(side.store["model"]["layers"] for side in (here, there))),
        *(
            (f"channels at {site}", here.store["channels"][site], there.store["channels"][site])
            for site in common
        ),
    ]
    for what, this, other in sizes:
        if this != other:
            raise ValueError(
                f"report.compare: the run {there.name} is of {there.model}, which has {other:,} "
                f"{what}, and this run of {here.model}, which has {this:,}: layers and channels "
                f"of such models have nothing to do with each other; compare runs of one model or "
                f"of others of its shape, or leave report.compare out"
            )


def of_model(here: Side, there: Side) -> str:
    """Return a sentence on whether layers and channels of the two runs correspond."""
    if here.store["model"]["fingerprint"] == there.store["model"]["fingerprint"]:
        return "Both runs are of the same weights."
    return (
        f"The runs are of different weights, this one of {visible(here.model)} and "
        f"{visible(there.name)} of {visible(there.model)}: a layer or channel of one is that of "
        f"the other only where one model was made from the other, as by fine-tuning."
    )
