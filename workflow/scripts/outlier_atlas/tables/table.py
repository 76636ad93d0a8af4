"""What a table is: its columns with their types, units and definitions; and the columns that many
tables share.

A type is its name and not an object of pyarrow: the Snakefile imports the descriptions, and starts
without pyarrow and numpy. `files.arrow_schema` makes the types where a file is read or written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

PARAMETERS = "parameters"
"""Key of a Parquet file's metadata: the settings that its numbers depend on, as JSON."""

ColumnType = Literal["bool", "int32", "int64", "float32", "float64", "string", "list<float32>"]
"""The type of a column's values, under pyarrow's name for it."""


@dataclass(frozen=True)
class Column:
    """A column of a table: its name, its type, what it means, and what it is counted in.

    `unit` is empty for names, texts and flags. Values of activations are in the model's own units.
    """

    name: str
    type: ColumnType
    definition: str
    unit: str = ""

    @property
    def metadata(self) -> dict[str, str]:
        """What travels in the Parquet file."""
        return {"definition": self.definition, "unit": self.unit}


@dataclass(frozen=True)
class Table:
    """A table that a run writes, described.

    Attributes:
        parameters: the blocks of the section `detection` that its numbers depend on, as they are
            in this run; empty in the description of what any run has.
    """

    name: str
    about: str
    columns: tuple[Column, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)

    @property
    def has_intervals(self) -> bool:
        """Whether it has bootstrap intervals."""
        return any(column.name.endswith("_low") for column in self.columns)

    def under(self, parameters: Mapping[str, Any]) -> Table:
        """The same with the parameters of a run."""
        return replace(self, parameters=dict(parameters))


SITE = Column("site", "string", "Site: where in the block the value was measured.")
LAYER = Column("layer", "int32", "Layer, 0-based, by the model's own numbering.", "index")
CHANNEL = Column("channel", "int32", "Channel: index along the last axis, 0-based.", "index")
EXPERT = Column("expert", "int32", "Expert, 0-based, by the model's own numbering.", "index")
TOKEN_INDEX = Column(
    "token_index", "int64", "Index along the store's token axis, 0-based.", "index"
)
SEQUENCE = Column("sequence", "int32", "Sequence, 0-based.", "index")
POSITION = Column("position", "int32", "Position of the token in its sequence, 0-based.", "index")
TOKEN_ID = Column("token_id", "int32", "The tokenizer's id of the token.", "id")
TOKEN_TEXT = Column("token_text", "string", "The token's own text, special tokens by name.")

WHERE = (TOKEN_INDEX, SEQUENCE, POSITION, TOKEN_ID, TOKEN_TEXT)
"""Of a token: its place in the run, and what it is."""

LARGEST_OF_TOKEN = (
    SITE,
    LAYER,
    *WHERE,
    CHANNEL,
    Column("value", "float32", "Its value largest in |x|, with its sign.", "activation"),
)
"""A token and its largest value: the first columns of tables of tokens that are outliers."""


NO_INTERVALS = (
    "Values of a single token depend on no other sequence than its own: they have no intervals."
)


def intervals(*names: str, unit: str, signed: bool = False) -> tuple[Column, ...]:
    """The ends of the intervals over sequences of some columns.

    Args:
        signed: they have a sign, and the intervals are of their magnitudes.
    """
    return tuple(
        Column(
            f"{name}_{end}",
            "float64",
            f"{which} end of the bootstrap interval of {f'|{name}|' if signed else name} over "
            f"sequences (detection.bootstrap); empty where one sequence is all there is.",
            unit,
        )
        for name in names
        for end, which in (("low", "Lower"), ("high", "Upper"))
    )
