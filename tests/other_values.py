"""Another value of every key of a section, by the type of the key."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

SITE = "mlp_in"
TOKEN = 3


def other_values(section: type[BaseModel]) -> dict[str, Any]:
    """Another value than the default of every key, by the key with its dots."""
    return dict(_others(section, ""))


def _others(section: type[BaseModel], path: str) -> Iterator[tuple[str, Any]]:
    for key, field in section.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from _others(type(field.default), f"{path}{key}.")
        else:
            yield f"{path}{key}", _other(field)


def _other(field: FieldInfo) -> Any:
    default, arguments = field.default, get_args(field.annotation)
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float):
        return default / 2
    if isinstance(default, str):
        others = [value for value in arguments if value != default]
        return SITE if SITE in others else others[0]
    assert isinstance(default, list), field
    return [SITE] if SITE in get_args(arguments[0]) else [TOKEN]
