"""Descriptions of tables and columns, and the columns that many tables share.

The type of a column is the name of a pyarrow type and not an object of pyarrow: the Snakefile
imports the descriptions, and starts without pyarrow and numpy. `files.arrow_schema` makes the types
where a file is read or written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

PARAMETERS = "parameters"
"""Key of a Parquet file's metadata with the settings that its numbers depend on, as JSON."""

ColumnType = Literal["bool", "int32", "int64", "float32", "float64", "string", "list<float32>"]
"""The type of a column's values, under pyarrow's name for it."""


@dataclass(frozen=True)
class Column:
    """The description of a column: name, type, definition and unit.

    `unit` is empty for names, texts and flags. Values of activations are in the model's own units.
    """

    name: str
    type: ColumnType
    definition: str
    unit: str = ""

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the field in the Parquet file."""
        return {"definition": self.definition, "unit": self.unit}


@dataclass(frozen=True)
class Table:
    """The description of a table that a run writes.

    Attributes:
        name: name of the table and of its files.
        about: description of the whole table.
        columns: the columns in order.
        parameters: the blocks of the section `detection` that the numbers of this run depend on;
            empty in a description that holds for all runs.
    """

    name: str
    about: str
    columns: tuple[Column, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)

    @property
    def has_intervals(self) -> bool:
        """True if the table has bootstrap intervals."""
        return any(column.name.endswith("_low") for column in self.columns)

    def with_parameters(self, parameters: Mapping[str, Any]) -> Table:
        """Return the description with the parameters of a run."""
        return replace(self, parameters=dict(parameters))


SITE = Column("site", "string", "Site in the block at which the value was measured.")
LAYER = Column("layer", "int32", "Layer, 0-based, in the model's own numbering.", "index")
CHANNEL = Column("channel", "int32", "Channel: index along the last axis, 0-based.", "index")
EXPERT = Column("expert", "int32", "Expert, 0-based, in the model's own numbering.", "index")
TOKEN_INDEX = Column(
    "token_index", "int64", "Index along the store's token axis, 0-based.", "index"
)
SEQUENCE = Column("sequence", "int32", "Sequence, 0-based.", "index")
POSITION = Column("position", "int32", "Position of the token in its sequence, 0-based.", "index")
TOKEN_ID = Column("token_id", "int32", "The tokenizer's id of the token.", "id")
TOKEN_TEXT = Column("token_text", "string", "The token's own text; the name of a special token.")

WHERE = (TOKEN_INDEX, SEQUENCE, POSITION, TOKEN_ID, TOKEN_TEXT)
"""The columns that identify a token: its position in the run, its id and its text."""

LARGEST_OF_TOKEN = (
    SITE,
    LAYER,
    *WHERE,
    CHANNEL,
    Column(
        "value", "float32", "The token's value with the largest |x|, with its sign.", "activation"
    ),
)
"""A token and its largest value: the first columns of tables of tokens that are outliers."""


NO_INTERVALS = (
    "Values of a single token have no intervals, because they depend on no other sequence."
)


def intervals(*names: str, unit: str, signed: bool = False) -> tuple[Column, ...]:
    """Return the columns with both ends of the intervals over sequences of some columns.

    Args:
        names: names of the columns.
        unit: unit of the columns.
        signed: whether the columns are signed; the intervals are then of their magnitudes.
    """
    return tuple(
        Column(
            f"{name}_{end}",
            "float64",
            f"{which} end of the bootstrap interval of {f'|{name}|' if signed else name} over "
            f"sequences (detection.bootstrap); empty if there is only one sequence.",
            unit,
        )
        for name in names
        for end, which in (("low", "Lower"), ("high", "Upper"))
    )
