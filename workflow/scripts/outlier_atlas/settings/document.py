"""Strict reading of a configuration file.

Snakemake reads the file before it parses the Snakefile, and less strictly. It keeps the last of two
equal keys, reports invalid YAML without the reason, and runs Python expressions in a file with
`__use_yte__`. So `make` checks the file with this module first, and the Snakefile checks it again.
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
"""Upper limit of values in a configuration, with every alias expanded."""


def read(path: Path) -> tuple[dict[str, Any], Written]:
    """Read a configuration file strictly.

    Returns:
        The content, and the spellings of values that YAML reads differently.

    Raises:
        ValueError: The file is missing, is not a YAML mapping, or has a key twice. The message is
            one line that names the line and column.
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
    """Return the number of values in a node, aliases expanded.

    A few lines with aliases can stand for billions of values.
    """
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MOST_VALUES  # so that an alias inside its own anchor exceeds the limit
    size = 1 + sum(_size(child, known) for child in _children(node))
    if size > MOST_VALUES:
        raise ValueError(
            f"line {node.start_mark.line + 1}: more than {MOST_VALUES:,} values with all aliases "
            f"(`*name`) expanded; a configuration has fewer"
        )
    known[id(node)] = size
    return size


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _refuse_repeats(node: yaml.Node) -> None:
    """Refuse equal keys in one mapping: YAML forbids them, but its readers keep the last one."""
    first: dict[str, int] = {}
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in first:
                raise ValueError(
                    f"line {line}: {key.value!r} is a repeated key, first in line "
                    f"{first[key.value]}; keep one of them"
                )
            first[key.value] = line
    for child in _children(node):
        _refuse_repeats(child)


def settings(files: Sequence[Path], config: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings in configuration files; the last file names the run.

    Args:
        config: the configuration that Snakemake merged from the files; by default the content of
            the last file.

    Raises:
        SystemExit: A file or a setting is invalid. The message has one line for each fault.
    """
    for file in files:
        try:
            content, written = read(file)
            if file == files[-1]:
                return load(content if config is None else config, file.stem, written)
        except ValueError as error:
            _refuse(readable(file), error)
    raise AssertionError("there is at least one file")


def given(config: Mapping[str, Any], name: str, place: str) -> Settings:
    """Return the settings in a configuration that another workflow passes to the module.

    Args:
        name: name of the run if the configuration has none.
        place: prefix of the messages that says where the configuration is.

    Raises:
        SystemExit: A setting is invalid. The message has one line for each fault.
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
