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
        description="Title of the report; by default it is made from the model's name.",
    )
    text: Literal["full", "tokens", "none"] = Field(
        "full",
        description="How much of the dataset's text the report shows: tokens in their context, "
        "the tokens alone, or none.",
    )
    context_tokens: Annotated[int, Field(ge=0, le=200)] = Field(
        12, description="Tokens shown on either side of a token, with `text: full`."
    )
    rows: PositiveInt = Field(
        25, description="Rows that a table of the report shows before it refers to the full table."
    )
    compare: str | None = Field(
        None,
        max_length=100,
        pattern=RUN_NAME,
        description="Name of another run, made before: the report shows its numbers next to this "
        "run's, such as with BOS against without (docs/bos.md). Of the same model, or of another "
        "with as many layers and channels.",
    )
