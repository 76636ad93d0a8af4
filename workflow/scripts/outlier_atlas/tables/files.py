"""Tables as files: Parquet and CSV.

One row a finding, in a fixed order, the same from run to run. The definition of a column
and its unit travel in the Parquet file itself, as the field's metadata `definition` and `unit`;
the tokens that are left out of its numbers, as the file's `left_out`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from outlier_atlas.files import replacing, write_whole
from outlier_atlas.tables.table import Table

LEFT_OUT = b"left_out"

DEFINITION = b"definition"
"""Key of a column's metadata."""

ROWS_TOGETHER = 64
"""Rows that are written together where rows are long."""


def write(folder: Path, table: Table, columns: Mapping[str, Any], left_out: str = "") -> None:
    """Write a table as Parquet and as CSV; each file appears whole or not at all.

    Args:
        folder: the run's `tables` folder; made where it is missing.
        table: its description.
        columns: its values, all equally long; the names must be those of the description.
        left_out: tokens that its numbers are without, in a sentence (`ExcludeSettings.said`); the
            Parquet file's metadata has it as `left_out`.
    """
    assert set(columns) == {column.name for column in table.columns}, table.name
    schema = table.schema
    if left_out:
        schema = schema.with_metadata({**schema.metadata, LEFT_OUT: left_out})
    data = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    for ending, write_table in (("parquet", _write_parquet), ("csv", pa.csv.write_csv)):
        content = pa.BufferOutputStream()
        write_table(data, content)
        write_whole(folder / f"{table.name}.{ending}", content.getvalue().to_pybytes())


def _write_parquet(data: pa.Table, content: pa.BufferOutputStream) -> None:
    pa.parquet.write_table(data, content, compression="zstd")


@contextmanager
def streaming(folder: Path, table: Table) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Write a table that is too large to be held, as Parquet alone: gives what takes each row.

    The file appears when the block ends without an error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting: list[Mapping[str, Any]] = []
    with (
        replacing(folder / f"{table.name}.parquet") as path,
        pa.parquet.ParquetWriter(path, table.schema, compression="zstd") as writer,
    ):

        def flush() -> None:
            columns = {name: [row[name] for row in waiting] for name in table.schema.names}
            writer.write_table(pa.table(columns, schema=table.schema))
            waiting.clear()

        def write_row(row: Mapping[str, Any]) -> None:
            waiting.append(row)
            if len(waiting) == ROWS_TOGETHER:
                flush()

        yield write_row
        flush()


def read(folder: Path, table: Table) -> pa.Table:
    """A table that `write` wrote.

    Raises:
        ValueError: another version of the project wrote it, with other columns.
    """
    path = folder / f"{table.name}.parquet"
    # Without this, pyarrow reads a column that the file lacks as empty.
    _refuse_other(path, pa.parquet.read_schema(path), table)
    return pa.parquet.read_table(path, schema=table.schema)


def refuse_other_definitions(folder: Path, table: Table) -> None:
    """Check that a table's columns mean what this version of the project means by them.

    Raises:
        ValueError: another version of the project wrote it, by other definitions.
    """
    path = folder / f"{table.name}.parquet"
    schema = pa.parquet.read_schema(path)
    _refuse_other(path, schema, table)
    for column in table.columns:
        definition = (schema.field(column.name).metadata or {}).get(DEFINITION, b"")
        if definition.decode() != column.definition:
            raise _other_version(path, f"its column {column.name} has another definition")


def _refuse_other(path: Path, schema: pa.Schema, table: Table) -> None:
    have = {field.name: field.type for field in schema}
    for column in table.columns:
        if column.name not in have:
            raise _other_version(path, f"it has no column {column.name}")
        if have[column.name] != column.type:
            raise _other_version(
                path, f"its column {column.name} is {have[column.name]}, not {column.type}"
            )


def _other_version(path: Path, cause: str) -> ValueError:
    return ValueError(
        f"{path}: written by another version of Outlier Atlas ({cause}); run the snakemake command "
        f"of its run again: the table is written again from what the run has computed"
    )


def left_out(folder: Path, table: Table) -> str:
    """The tokens that a table's numbers are without, in a sentence; empty where there are none."""
    metadata = pa.parquet.read_schema(folder / f"{table.name}.parquet").metadata
    return bytes(metadata.get(LEFT_OUT, b"")).decode()
