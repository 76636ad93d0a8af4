"""The `report` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from outlier_atlas.settings.section import RUN_NAME, PositiveInt, Section


class ReportSettings(Section):
    title: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Title of the report; by default it contains the model's name.",
    )
    text: Literal["full", "tokens", "none"] = Field(
        "full",
        description="How much of the dataset's text the report shows: tokens with their context "
        "(`full`), only the tokens, or no text.",
    )
    context_tokens: Annotated[int, Field(ge=0, le=200)] = Field(
        12, description="Number of tokens of context on either side of a token, with `text: full`."
    )
    rows: PositiveInt = Field(
        25,
        description="Maximum number of rows that the report shows of a table; it links to the "
        "full table.",
    )
    compare: str | None = Field(
        None,
        max_length=100,
        pattern=RUN_NAME,
        description="Name of another, finished run whose numbers the report shows next to those "
        "of this run, for example a run without BOS (docs/bos.md). Its model is the same, or has "
        "as many layers and channels.",
    )
