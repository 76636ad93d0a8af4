"""Base classes and types of all sections of the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
FLOAT32 = (2.0**-126, 2.0**128 - 2.0**104)
"""The smallest normal and the largest number of float32."""


def _of_float32(number: float) -> float:
    """Return a number if float32 distinguishes it from zero and infinity, or refuse it."""
    least, most = FLOAT32
    if not least <= number <= most:
        raise ValueError(f"must be from {least:.3g} to {most:.3g}, as values are float32 numbers")
    return number


PositiveInt = Annotated[int, Field(ge=1, lt=2**31)]
Index = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(_of_float32)]
Share = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """A section of the configuration: immutable, without unknown keys or implicit conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CriterionSettings(Section):
    """Settings of a criterion or measure: a block of the section `detection`."""

    @property
    def least(self) -> dict[str, float]:
        """Smallest |x| at each site whose token and channel must be known; empty by default."""
        return {}


def exactly(number: float) -> str:
    """Return a setting with all of its digits: `6`, `0.06`, `1234567`, `1e-30`."""
    shown = Decimal(repr(float(number))).normalize()
    return f"{shown:f}" if 1e-6 <= abs(shown) < 1e15 else repr(float(number))


def percent(share: float) -> str:
    """Return a share as a percentage, without the % sign: `99.5` for 0.995."""
    return exactly(float(Decimal(repr(float(share))) * 100))


def refuse_repeats(items: Sequence[Any]) -> None:
    """Refuse a list that contains an item twice."""
    seen = set()
    for item in items:
        if item in seen:
            shown = list(item) if isinstance(item, tuple) else item
            raise ValueError(f"{shown!r} is named more than once; keep one of them")
        seen.add(item)
