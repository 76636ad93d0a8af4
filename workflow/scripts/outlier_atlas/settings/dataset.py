"""The `dataset` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from outlier_atlas.settings.section import PositiveInt, Section
from outlier_atlas.settings.source import known_source, source_kind

BUILTIN_DATASETS = ("builtin:sotu",)


class DatasetSettings(Section):
    source: str = Field(
        min_length=1,
        description="`builtin:sotu`, a local `.txt`, `.jsonl`, `.csv` or `.parquet` file or a "
        "folder of them, or a hub id such as `HuggingFaceFW/fineweb-edu`.",
    )
    subset: str | None = Field(
        None, min_length=1, description="Subset (configuration) of a hub dataset."
    )
    split: str = Field("train", min_length=1, description="Split of a hub dataset.")
    revision: str | None = Field(
        None,
        min_length=1,
        description="Branch, tag or commit of a hub dataset; resolved to a commit and recorded.",
    )
    text_column: str | None = Field(
        None,
        min_length=1,
        description="Column that holds the text; `text` where none of the three columns is named.",
    )
    messages_column: str | None = Field(
        None,
        min_length=1,
        description="Column that holds chats (lists of `role` and `content`), rendered with the "
        "tokenizer's own chat template.",
    )
    input_ids_column: str | None = Field(
        None, min_length=1, description="Column that holds ready token ids; no text is tokenized."
    )
    shuffle_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = Field(
        None, description="Seed for shuffling the documents; by default they keep their order."
    )
    sequences: PositiveInt = Field(4, description="Number of sequences to run.")
    sequence_length: Annotated[int, Field(ge=2)] = Field(
        2048,
        description="Tokens in a sequence (with `packing: document`, at most).",
    )
    packing: Literal["concat", "document"] = Field(
        "concat",
        description="`concat` joins documents with the end-of-text token and cuts full sequences; "
        "`document` makes one document one sequence, of its own length.",
    )
    min_length: PositiveInt = Field(
        1, description="With `packing: document`, leave out documents with fewer tokens."
    )
    bos: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Begin-of-sequence token at the start of each sequence: `auto` does as the "
        "tokenizer does by itself.",
    )

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        return known_source(source, BUILTIN_DATASETS)

    @model_validator(mode="after")
    def _consistent(self) -> DatasetSettings:
        columns = {
            name: value
            for name in ("text_column", "messages_column", "input_ids_column")
            if (value := getattr(self, name)) is not None
        }
        if len(columns) > 1:
            raise ValueError(f"{' and '.join(columns)} are both set: name one column only")
        if source_kind(self.source) != "hub":
            for name in ("revision", "subset"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} {getattr(self, name)!r}: only a hub dataset has one, "
                        f"and source is {self.source!r}"
                    )
        if self.min_length > self.sequence_length:
            raise ValueError(
                f"min_length {self.min_length} is above sequence_length {self.sequence_length}"
            )
        if self.packing == "concat" and self.min_length != 1:
            raise ValueError(f"min_length {self.min_length} needs packing: document")
        return self

    @property
    def column(self) -> tuple[Literal["text", "messages", "input_ids"], str]:
        """What is read from a record, and the column that holds it."""
        if self.messages_column is not None:
            return "messages", self.messages_column
        if self.input_ids_column is not None:
            return "input_ids", self.input_ids_column
        return "text", self.text_column or "text"
