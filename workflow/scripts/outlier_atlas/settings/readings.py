"""Scalars of a YAML file whose value differs from what they look like.

PyYAML and Snakemake read YAML 1.1, in which `1:30` is a number in base 60 (90) and `010` a number
in base 8 (8). YAML 1.2 and most people read them as text and as ten, so such numbers are refused.
Spellings with a single meaning (`1_000`, `0x10`, or `yes` for a truth value) are accepted. If a
truth value or a date is invalid for a key, the message quotes the spelling in the file: `bos: no`
is false.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from outlier_atlas.sanitize import shortened
from outlier_atlas.settings.faults import Loc, Written

TAG = "tag:yaml.org,2002:"
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
KINDS |= {"timestamp": "a date"}
"""Names of the types that YAML recognizes in a scalar, by tag."""
BASES = {
    60: (("int", "float"), re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")),
    8: (("int",), re.compile(r"[-+]?0[0-9_]*[0-9][0-9_]*")),
}
"""Patterns of numbers in bases 60 and 8 that look like something else, with the types of number."""


def other_readings(node: yaml.Node) -> Written:
    """Return the truth values and dates whose spelling differs from the way messages show them.

    Raises:
        ValueError: A number is in base 60 or 8, or a scalar cannot be read. The message is one
            line with the line number, the key and the spelling.
    """
    written: dict[Loc, tuple[str, Any]] = {}
    for location, scalar in _scalars(node, ()):
        kind = scalar.tag.removeprefix(TAG)
        if kind not in KINDS:
            continue
        value = _read(location, scalar, kind)
        spelled_out = kind == "bool" and str(value).lower() == scalar.value.lower()
        if kind in ("bool", "timestamp") and not spelled_out:
            written[location] = scalar.value, value
    return written


def _read(location: Loc, scalar: yaml.ScalarNode, kind: str) -> Any:
    try:
        value = yaml.SafeLoader("").construct_object(scalar)
    except (ValueError, LookupError, AttributeError) as error:  # all that PyYAML may raise
        raise ValueError(
            f"{_named(location, scalar)}: cannot be read as {KINDS[kind]}; put it in quotes if it "
            f"is text"
        ) from error
    for base, (kinds, pattern) in BASES.items():
        if kind in kinds and pattern.fullmatch(scalar.value):
            raise ValueError(
                f"{_named(location, scalar)}: YAML reads a number in base {base}, {value}; write "
                f"it in decimal digits, or in quotes if it is text"
            )
    return value


def _named(location: Loc, scalar: yaml.ScalarNode) -> str:
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
    return f"line {scalar.start_mark.line + 1}: {key.lstrip('.')} = {shortened(scalar.value, 80)}"


def _scalars(node: yaml.Node, location: Loc) -> Iterator[tuple[Loc, yaml.ScalarNode]]:
    """Yield every scalar that is not a key, with its location."""
    if isinstance(node, yaml.ScalarNode):
        yield location, node
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield from _scalars(child, (*location, index))
    elif isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            merged = key.tag == f"{TAG}merge"
            yield from _scalars(child, location if merged else (*location, str(key.value)))
