"""Messages about an invalid configuration: one line for each fault, with key, value and remedy."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from outlier_atlas.sanitize import shortened

Loc = tuple[int | str, ...]

Written = Mapping[Loc, tuple[str, Any]]
"""Spelling of a value in the file and the value that YAML reads there, by location."""

ALLOWED = {
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_type": "must be a whole number",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "string_pattern_mismatch": "must be letters, digits, '.', '_' and '-', a letter or digit first",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must not be empty",
    "string_unicode": "must be text that UTF-8 can write",
    "string_type": "must be text (in quotes, if YAML takes it for something else)",
    "too_short": "must not be empty",
}
"""Requirements for a value, by pydantic's type of error."""

WRONG_KIND = {"literal_error", *(kind for kind in ALLOWED if kind.endswith("_type"))}
"""Errors that report a value of the wrong type."""

NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]*)?")
EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
PLAIN = {"int_type": NUMBER, "float_type": NUMBER, "bool_type": re.compile("true|false", re.I)}
"""Text that would be valid without its quotes, by type of error."""


def faults(
    error: ValidationError, root: type[BaseModel], written: Written = MappingProxyType({})
) -> Iterator[str]:
    """Yield one line for each fault of a configuration with the model `root`."""
    details = error.errors(include_url=False)
    # Each alternative of a union (`all`, or a list) reports an error: together they are one fault.
    for _, alternatives in groupby(details, key=lambda fault: _without_union(fault["loc"])[0]):
        yield from _of_one_value(list(alternatives), root, written)


def _of_one_value(
    alternatives: Sequence[ErrorDetails], root: type[BaseModel], written: Written
) -> Iterator[str]:
    kinds = [fault for fault in alternatives if fault["type"] in WRONG_KIND]
    depth = min(len(fault["loc"]) for fault in alternatives)
    telling = [fault for fault in alternatives if fault not in kinds or len(fault["loc"]) > depth]
    if len(alternatives) > 1 and not telling:
        allowed = [_allowed(fault, root).removeprefix("must be ") for fault in alternatives]
        yield _line(alternatives[0], f"must be {' or '.join(allowed)}", written)
        return
    for fault in telling or alternatives:
        yield _line(fault, _allowed(fault, root), written)


def _line(fault: ErrorDetails, allowed: str, written: Written) -> str:
    key = _key(fault["loc"])
    if not key:
        return allowed
    if fault["type"] in ("extra_forbidden", "missing") or isinstance(fault["input"], BaseModel):
        return f"{key}: {allowed}"
    if fault["type"] == "value_error" and isinstance(fault["input"], Mapping):
        return f"{key}: {allowed}"
    return f"{key} = {_as_written(fault, written)}: {allowed}{_hint(fault)}"


def _as_written(fault: ErrorDetails, written: Written) -> str:
    """Return a value as text, with its spelling in the file if YAML reads it differently."""
    value = fault["input"]
    location = tuple(p for p in fault["loc"] if isinstance(p, int) or not _is_union_member(p))
    text, read = written.get(location, ("", None))
    if text and type(read) is type(value) and read == value:
        return f"{shortened(text, 80)} (which YAML reads as {_in_words(value)})"
    return _shown(value)


def _in_words(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "a date"


def _hint(fault: ErrorDetails) -> str:
    """Return the remedy for a number or truth value that is given as text."""
    value, plain = fault["input"], PLAIN.get(fault["type"])
    if plain is None or not isinstance(value, str):
        return ""
    if plain is NUMBER and LEADING_ZERO.fullmatch(value):
        return "; write it without leading zeros"
    if fault["type"] == "float_type" and EXPONENT.fullmatch(value):
        return "; YAML wants a point and a sign in it, such as 1.0e-3"
    if not plain.fullmatch(value):
        return ""
    return (
        ", not text: write it without quotes, and in a file (make run CONFIG=mine.yaml), because "
        "Snakemake's --config turns everything in braces into text"
    )


def _allowed(fault: ErrorDetails, root: type[BaseModel]) -> str:
    loc, kind = fault["loc"], fault["type"]
    if kind == "extra_forbidden":
        return f"unknown key; {_nearest(str(loc[-1]), list(_section(loc[:-1], root).model_fields))}"
    if kind == "missing":
        return f"missing; {_section(loc[:-1], root).model_fields[str(loc[-1])].description}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"must be a section with the keys {', '.join(_section(loc, root).model_fields)}"
    if kind == "invalid_key":
        return "unknown key; keys are text"
    template = ALLOWED.get(kind)
    if template is None:
        return fault["msg"].removeprefix("Value error, ")
    return template.format_map(fault.get("ctx", {}))


def _without_union(loc: Loc) -> tuple[Loc, bool]:
    """Return a location up to the first name of a union member, and whether there is one."""
    for index, part in enumerate(loc):
        if isinstance(part, str) and _is_union_member(part):
            return loc[:index], True
    return loc, False


def _key(loc: Loc) -> str:
    """Return a location as a key such as `extraction.layers[2]`.

    The names of union members, which pydantic adds, are left out.
    """
    key = ""
    for part in loc:
        if isinstance(part, int):
            key += f"[{part}]" if key else str(part)
        elif not _is_union_member(part):
            name = part if re.fullmatch(r"[^\W\d]\w*", part) else _shown(part)
            key += f".{name}" if key else name
    return key


def _is_union_member(part: str) -> bool:
    return bool(re.match(r"(constrained-|function-|literal\[|list\[)", part)) or part in {
        "int",
        "float",
        "str",
    }


def _shown(value: Any) -> str:
    """Return a value as one short line of a message."""
    if isinstance(value, str):
        text = repr(value) if value.isprintable() else ascii(value)
    else:
        text = reprlib.repr(value)  # bounded: an alias may stand for billions of values
    return shortened(text, 80)


def _section(loc: Loc, root: type[BaseModel]) -> type[BaseModel]:
    """Return the section of the configuration at a location."""
    section = root
    for part in loc:
        annotation = section.model_fields[str(part)].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        section = annotation
    return section


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
