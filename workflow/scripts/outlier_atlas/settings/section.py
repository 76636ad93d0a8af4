"""What all sections of the configuration share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
PositiveInt = Annotated[int, Field(ge=1, lt=2**31)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """A part of the configuration: no unknown keys, no silent conversion, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def refuse_repeats(items: list[Any]) -> None:
    for item in items:
        if items.count(item) > 1:
            raise ValueError(f"{item!r} is named more than once")
