"""Tables as Parquet and CSV files.

A table has one row for each finding, in an order that is the same in every run. The Parquet file
contains the definition and the unit of each column as the field's metadata `definition` and `unit`,
and the tokens that its numbers exclude as the file's metadata `left_out`.
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
"""Key of the file's metadata with the excluded tokens."""

DEFINITION = b"definition"
"""Key of a column's metadata with its definition."""

ROWS_TOGETHER = 64
"""Number of rows in a batch of a table with long rows."""


def write(folder: Path, table: Table, columns: Mapping[str, Any], left_out: str = "") -> None:
    """Write a table as Parquet and as CSV, each file atomically.

    Args:
        folder: the run's `tables` folder; created if it is missing.
        table: description of the table.
        columns: values of each column, all of equal length; the names must be those of the
            description.
        left_out: sentence that names the excluded tokens (`ExcludeSettings.sentence`), for the
            metadata `left_out` of the Parquet file.
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
    """Yield a function that writes one row of a table too large for memory; only as Parquet.

    The file appears when the block ends without an error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pending: list[Mapping[str, Any]] = []
    with (
        replacing(folder / f"{table.name}.parquet") as path,
        pa.parquet.ParquetWriter(path, table.schema, compression="zstd") as writer,
    ):

        def flush() -> None:
            columns = {name: [row[name] for row in pending] for name in table.schema.names}
            writer.write_table(pa.table(columns, schema=table.schema))
            pending.clear()

        def write_row(row: Mapping[str, Any]) -> None:
            pending.append(row)
            if len(pending) == ROWS_TOGETHER:
                flush()

        yield write_row
        flush()


def read(folder: Path, table: Table) -> pa.Table:
    """Read a table that `write` wrote.

    Raises:
        ValueError: Another version of the project wrote the file, with other columns.
    """
    path = folder / f"{table.name}.parquet"
    # Without this check, pyarrow reads a missing column as empty.
    _refuse_other_columns(path, pa.parquet.read_schema(path), table)
    return pa.parquet.read_table(path, schema=table.schema)


def refuse_other_definitions(folder: Path, table: Table) -> None:
    """Check that the columns of a table have the definitions of this version of the project.

    Raises:
        ValueError: Another version of the project wrote the file, with other columns or
            definitions.
    """
    path = folder / f"{table.name}.parquet"
    schema = pa.parquet.read_schema(path)
    _refuse_other_columns(path, schema, table)
    for column in table.columns:
        definition = (schema.field(column.name).metadata or {}).get(DEFINITION, b"")
        if definition.decode() != column.definition:
            raise _other_version(path, f"its column {column.name} has another definition")


def _refuse_other_columns(path: Path, schema: pa.Schema, table: Table) -> None:
    types = {field.name: field.type for field in schema}
    for column in table.columns:
        if column.name not in types:
            raise _other_version(path, f"it has no column {column.name}")
        if types[column.name] != column.type:
            raise _other_version(
                path, f"its column {column.name} is {types[column.name]}, not {column.type}"
            )


def _other_version(path: Path, cause: str) -> ValueError:
    return ValueError(
        f"{path}: written by another version of Outlier Atlas ({cause}); run the snakemake command "
        f"of its run again: it rewrites the table from the results that the run has computed"
    )


def left_out(folder: Path, table: Table) -> str:
    """Return the sentence that names the tokens excluded from a table; empty if there are none."""
    metadata = pa.parquet.read_schema(folder / f"{table.name}.parquet").metadata
    return bytes(metadata.get(LEFT_OUT, b"")).decode()
