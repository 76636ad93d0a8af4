"""Scalars of a YAML file that are not read as they look.

PyYAML and Snakemake read YAML 1.1. It takes `1:30` for a number in base 60 (90) and `010` for one
in base 8 (8), where YAML 1.2 and most people read text and ten: such a number would be wrong
without a word, so it is refused. What has one meaning in both (`1_000`, `0x10`, `yes` where true or
false is asked for) is read. Where a truth value or a date is of no use, the error says how the
file writes it: `bos: no` is false.
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
"""What YAML reads in a scalar, by tag."""
BASES = {
    60: (("int", "float"), re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")),
    8: (("int",), re.compile(r"[-+]?0[0-9_]*[0-9][0-9_]*")),
}
"""How numbers are written that are not decimal and do not look it, by kind of number."""


def other_readings(node: yaml.Node) -> Written:
    """Collect the truth values and dates that are written in another way than they are shown.

    Raises:
        ValueError: a number is in base 60 or 8, or a scalar cannot be read; one line that names
            its line, its key and how it is written.
    """
    written: dict[Loc, tuple[str, Any]] = {}
    for place, scalar in _scalars(node, ()):
        kind = scalar.tag.removeprefix(TAG)
        if kind not in KINDS:
            continue
        value = _read(place, scalar, kind)
        spelled_out = kind == "bool" and str(value).lower() == scalar.value.lower()
        if kind in ("bool", "timestamp") and not spelled_out:
            written[place] = scalar.value, value
    return written


def _read(place: Loc, scalar: yaml.ScalarNode, kind: str) -> Any:
    try:
        value = yaml.SafeLoader("").construct_object(scalar)
    except (ValueError, LookupError, AttributeError) as error:  # whatever PyYAML stumbles over
        raise ValueError(
            f"{_named(place, scalar)}: cannot be read as {KINDS[kind]}; put it in quotes if it is "
            f"text"
        ) from error
    for base, (kinds, pattern) in BASES.items():
        if kind in kinds and pattern.fullmatch(scalar.value):
            raise ValueError(
                f"{_named(place, scalar)}: YAML reads a number in base {base}, {value}; write it "
                f"in decimal digits, or in quotes if it is text"
            )
    return value


def _named(place: Loc, scalar: yaml.ScalarNode) -> str:
    key = ""
    for part in place:
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
    return f"line {scalar.start_mark.line + 1}: {key.lstrip('.')} = {shortened(scalar.value, 80)}"


def _scalars(node: yaml.Node, place: Loc) -> Iterator[tuple[Loc, yaml.ScalarNode]]:
    """Walk through all scalars but keys, with their places."""
    if isinstance(node, yaml.ScalarNode):
        yield place, node
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            yield from _scalars(child, (*place, index))
    elif isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            merged = key.tag == f"{TAG}merge"
            yield from _scalars(child, place if merged else (*place, str(key.value)))
