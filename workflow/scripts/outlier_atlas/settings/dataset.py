"""The `dataset` section."""

from __future__ import annotations

import datetime
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from outlier_atlas.settings.section import PositiveInt, Section, refuse_repeats
from outlier_atlas.settings.source import DATA, known_source, source_kind

BUILTIN_DATASETS = ("builtin:sotu",)


def _date_text(value: Any) -> Any:
    """Return a date as text: YAML reads an unquoted `2025-01-31` as a date."""
    return value.isoformat() if type(value) is datetime.date else value


class DatasetSettings(Section):
    source: str = Field(
        min_length=1,
        description="`builtin:sotu`, a local `.txt`, `.jsonl`, `.csv` or `.parquet` file or a "
        "folder of them, or a hub id such as `HuggingFaceFW/fineweb-edu`.",
    )
    subset: str | None = Field(
        None,
        min_length=1,
        description="Subset (configuration) of a hub dataset, or of a folder whose `README.md` "
        "names subsets.",
    )
    split: str = Field(
        "train",
        min_length=1,
        description="Split of a hub dataset or of a folder. The splits of a folder follow from "
        "the names of its files and subfolders, by the rules of `datasets`.",
    )
    files: list[Annotated[str, Field(min_length=1)]] = Field(
        [],
        description="Files of a folder or a hub dataset to read, as patterns such as "
        "`data/*.jsonl`, in this order; by default the files that `datasets` assigns to the "
        "split, without licenses.",
    )
    revision: str | None = Field(
        None,
        min_length=1,
        description="Branch, tag or commit of a hub dataset; resolved to a commit and recorded.",
    )
    text_column: str | None = Field(
        None,
        min_length=1,
        description="Column with the text; `text` if none of the three columns is named.",
    )
    messages_column: str | None = Field(
        None,
        min_length=1,
        description="Column with chats (lists of `role` and `content`), rendered with the "
        "tokenizer's own chat template.",
    )
    input_ids_column: str | None = Field(
        None, min_length=1, description="Column with token ids; no text is tokenized."
    )
    shuffle_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = Field(
        None, description="Seed for shuffling the documents; by default they keep their order."
    )
    special_tokens: Literal["auto", "split"] = Field(
        "auto",
        description="Treatment of special tokens written in a text (`<|im_start|>`): `auto` leaves "
        "them to the tokenizer, `split` tokenizes them like any other text.",
    )
    date: Annotated[str, BeforeValidator(_date_text)] = Field(
        "2024-07-26",
        description="The date (year-month-day) that a chat template receives when it asks for the "
        "current date.",
    )
    sequences: PositiveInt = Field(4, description="Number of sequences to run.")
    sequence_length: Annotated[int, Field(ge=2, le=2**24)] = Field(
        2048,
        description="Tokens in a sequence; with `packing: document` the maximum.",
    )
    packing: Literal["concat", "document"] = Field(
        "concat",
        description="`concat` joins documents with the end-of-text token and cuts full sequences; "
        "`document` turns each document into one sequence of its own length.",
    )
    min_length: PositiveInt = Field(
        1, description="With `packing: document`, documents with fewer tokens are skipped."
    )
    bos: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Begin-of-sequence token at the start of each sequence: `auto` adds what the "
        "tokenizer adds by default, one token or several or none; chats begin as their template "
        "defines.",
    )

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        return known_source(source, BUILTIN_DATASETS)

    @field_validator("date")
    @classmethod
    def _a_date(cls, date: str) -> str:
        try:
            return datetime.date.fromisoformat(date).isoformat()
        except ValueError as error:
            raise ValueError("must be a date such as 2025-01-31") from error

    @field_validator("files")
    @classmethod
    def _inside(cls, files: list[str]) -> list[str]:
        refuse_repeats(files)
        for pattern in files:
            parts = pattern.split("/")
            if pattern.startswith(("/", "~")) or ".." in parts:
                raise ValueError(f"{pattern!r} leads out of the dataset: name files inside it")
            if any("**" in part and part != "**" for part in parts):
                raise ValueError(
                    f"{pattern!r}: `**` stands for folders and must be a path component by itself"
                )
        return files

    @model_validator(mode="after")
    def _consistent(self) -> DatasetSettings:
        columns = {
            name: value
            for name in ("text_column", "messages_column", "input_ids_column")
            if (value := getattr(self, name)) is not None
        }
        if len(columns) > 1:
            raise ValueError(f"{' and '.join(columns)} are both set: name one column only")
        kind = source_kind(self.source)
        if kind != "hub" and self.revision is not None:
            raise ValueError(
                f"revision {self.revision!r}: only a hub dataset has one, "
                f"and source is {self.source!r}; remove it"
            )
        if PurePath(self.source).suffix in DATA and self.subset is not None:
            raise ValueError(
                f"subset {self.subset!r}: only a hub dataset or a folder has one, "
                f"and source is {self.source!r}; remove it"
            )
        if kind == "builtin" and (self.subset is not None or self.split != "train" or self.files):
            raise ValueError(
                f"{self.source!r} has only the split train, and neither subsets nor files; remove "
                f"the setting"
            )
        if self.special_tokens == "split" and self.column[0] != "text":
            raise ValueError(
                "special_tokens 'split' applies to text only; take auto for chats and token ids"
            )
        if self.min_length > self.sequence_length:
            raise ValueError(
                f"min_length {self.min_length} is above sequence_length {self.sequence_length}; "
                f"take at most {self.sequence_length}"
            )
        if self.packing == "concat" and self.min_length != 1:
            raise ValueError(
                f"min_length {self.min_length} needs packing: document; set packing, or remove "
                f"min_length"
            )
        return self

    @property
    def column(self) -> tuple[Literal["text", "messages", "input_ids"], str]:
        """Kind of the documents, and the column that contains them."""
        if self.messages_column is not None:
            return "messages", self.messages_column
        if self.input_ids_column is not None:
            return "input_ids", self.input_ids_column
        return "text", self.text_column or "text"
