"""Tables as Parquet and CSV files.

A table has one row for each finding, in an order that is the same in every run. The Parquet file
contains the definition and the unit of each column as the field's metadata `definition` and `unit`,
and the tokens that its numbers exclude as the file's metadata `left_out`.

pyarrow is imported by the functions that use it: the Snakefile imports this package for the names
of the tables.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlier_atlas.files import replacing, write_whole
from outlier_atlas.phases import ENCODE, phase
from outlier_atlas.tables.table import PARAMETERS, ColumnType, Table

if TYPE_CHECKING:
    import pyarrow as pa

LEFT_OUT = b"left_out"
"""Key of the file's metadata with the excluded tokens."""

DEFINITION = b"definition"
"""Key of a column's metadata with its definition."""

ROWS_TOGETHER = 64
"""Number of rows in a batch of a table with long rows."""


def arrow_type(kind: ColumnType) -> pa.DataType:
    """Return the type of a column as pyarrow's own object."""
    import pyarrow as pa

    return pa.list_(pa.float32()) if kind == "list<float32>" else pa.type_for_alias(kind)


def arrow_schema(table: Table) -> pa.Schema:
    """Return the schema of a table's Parquet file, with everything its description says."""
    import pyarrow as pa

    fields = [
        pa.field(column.name, arrow_type(column.type), metadata=column.metadata)
        for column in table.columns
    ]
    metadata: dict[bytes | str, bytes | str] = {"table": table.name, "about": table.about}
    if table.parameters:
        metadata[PARAMETERS] = json.dumps({"detection": table.parameters}, sort_keys=True)
    return pa.schema(fields, metadata=metadata)


@phase(ENCODE)
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
    import pyarrow as pa
    from pyarrow.csv import write_csv
    from pyarrow.parquet import write_table as write_parquet

    assert set(columns) == {column.name for column in table.columns}, table.name
    schema = arrow_schema(table)
    if left_out:
        schema = schema.with_metadata({**schema.metadata, LEFT_OUT: left_out})
    data = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    for ending, write_table in (
        ("parquet", partial(write_parquet, compression="zstd")),
        ("csv", write_csv),
    ):
        content = pa.BufferOutputStream()
        write_table(data, content)
        write_whole(folder / f"{table.name}.{ending}", content.getvalue().to_pybytes())


@contextmanager
def streaming(folder: Path, table: Table) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that writes one row of a table too large for memory; only as Parquet.

    The file appears when the block ends without an error.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    folder.mkdir(parents=True, exist_ok=True)
    schema = arrow_schema(table)
    pending: list[Mapping[str, Any]] = []
    with (
        replacing(_path(folder, table)) as path,
        ParquetWriter(path, schema, compression="zstd") as writer,
    ):

        def flush() -> None:
            columns = {name: [row[name] for row in pending] for name in schema.names}
            writer.write_table(pa.table(columns, schema=schema))
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
    from pyarrow.parquet import read_table

    path = _path(folder, table)
    # Without this, pyarrow reads a column that the file lacks as empty.
    _refuse_other_columns(path, file_schema(folder, table), table)
    return read_table(path, schema=arrow_schema(table))


def file_schema(folder: Path, table: Table) -> pa.Schema:
    """Return the schema that a table's file has, with the metadata in it."""
    from pyarrow.parquet import read_schema

    return read_schema(_path(folder, table))


def _path(folder: Path, table: Table) -> Path:
    return folder / f"{table.name}.parquet"


def refuse_other_definitions(folder: Path, table: Table) -> None:
    """Check that the columns of a table have the definitions of this version of the project.

    Raises:
        ValueError: Another version of the project wrote the file, with other columns or
            definitions.
    """
    path, schema = _path(folder, table), file_schema(folder, table)
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
        if (kind := arrow_type(column.type)) != types[column.name]:
            raise _other_version(
                path, f"its column {column.name} is {types[column.name]}, not {kind}"
            )


def _other_version(path: Path, cause: str) -> ValueError:
    return ValueError(
        f"{path}: written by another version of Outlier Atlas ({cause}); run the snakemake command "
        f"of its run again: it rewrites the table from the results that the run has computed"
    )


def left_out(folder: Path, table: Table) -> str:
    """Return the sentence that names the tokens excluded from a table; empty if there are none."""
    metadata = file_schema(folder, table).metadata
    return bytes(metadata.get(LEFT_OUT, b"")).decode()
