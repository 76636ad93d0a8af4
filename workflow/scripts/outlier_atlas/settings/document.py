"""A configuration file as it is written, read strictly.

Snakemake reads it, too, and before the Snakefile: it takes the last of two equal keys, says of bad
YAML only that it is bad, and runs Python expressions in a file that has `__use_yte__`. So `make`
looks here first, and the Snakefile before it goes on.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from outlier_atlas.files import readable
from outlier_atlas.sanitize import redacted, visible, visible_lines
from outlier_atlas.settings.configuration import Settings, load
from outlier_atlas.settings.faults import Written
from outlier_atlas.settings.readings import other_readings

MOST_VALUES = 10_000
"""Values in a configuration, with every alias written out."""


def read(path: Path) -> tuple[dict[str, Any], Written]:
    """Read what a configuration file holds, and how it writes what YAML reads as something else.

    Raises:
        ValueError: it is not there, is no YAML mapping, or says something twice; one line that
            names the place.
    """
    try:
        node = yaml.compose(_text(path), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}not YAML ({error.problem or error.context})") from error
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise ValueError("not a configuration: nested too deeply") from error
    if not isinstance(node, yaml.MappingNode):
        raise ValueError("a configuration has keys, such as `model:`; see config/README.md")
    _size(node, {})
    _refuse_repeats(node)
    written = other_readings(node)
    try:
        config = yaml.SafeLoader("").construct_document(node)
    except yaml.MarkedYAMLError as error:
        assert error.problem_mark is not None
        raise ValueError(f"line {error.problem_mark.line + 1}: {error.problem}") from error
    if "__use_yte__" in config:
        raise ValueError("__use_yte__ lets a configuration run Python; write the values themselves")
    return dict(config), written


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8, at byte {error.start:,}; convert it, with iconv") from error
    except FileNotFoundError as error:
        raise ValueError("no such file; see config/README.md") from error
    except OSError as error:
        raise ValueError(str(error.strerror)) from error


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values in a node, aliases written out; a few lines can stand for billions."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MOST_VALUES  # of an alias inside of what it stands for
    size = 1 + sum(_size(child, known) for child in _children(node))
    if size > MOST_VALUES:
        raise ValueError(
            f"line {node.start_mark.line + 1}: more than {MOST_VALUES:,} values, with its aliases "
            f"(`*name`) written out; that is no configuration"
        )
    known[id(node)] = size
    return size


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _refuse_repeats(node: yaml.Node) -> None:
    """YAML forbids two equal keys, and its readers keep the last one and say nothing."""
    first: dict[str, int] = {}
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in first:
                raise ValueError(
                    f"line {line}: {key.value!r} is there already, in line {first[key.value]}; "
                    f"keep one of them"
                )
            first[key.value] = line
    for child in _children(node):
        _refuse_repeats(child)


def settings(files: Sequence[Path], config: Mapping[str, Any] | None = None) -> Settings:
    """The settings in configuration files; of several the last one names the run.

    Args:
        config: what Snakemake made of them; by default what the last one holds.

    Raises:
        SystemExit: something is wrong with them; its message has a line for each fault.
    """
    for file in files:
        try:
            held, written = read(file)
            if file == files[-1]:
                return load(held if config is None else config, file.stem, written)
        except ValueError as error:
            _refuse(readable(file), error)
    raise AssertionError("there is at least one file")


def given(config: Mapping[str, Any], name: str, place: str) -> Settings:
    """The settings in a configuration that another workflow gives.

    Args:
        name: of the run where the configuration gives none.
        place: for the errors.

    Raises:
        SystemExit: something is wrong with it; the message has a line for each fault.
    """
    try:
        return load(config, name)
    except ValueError as error:
        _refuse(place, error)


def _refuse(place: str, error: ValueError) -> NoReturn:
    if os.environ.get("OUTLIER_ATLAS_TRACEBACK"):
        print(visible_lines(redacted(traceback.format_exc())), file=sys.stderr)
    faults = [f"{place}: {fault}" for fault in str(error).splitlines()]
    sys.exit("\n".join(visible(redacted(fault)) for fault in faults))


if __name__ == "__main__":
    settings([Path(sys.argv[1])])
