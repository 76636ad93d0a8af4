"""The generated documentation.

It consists of the JSON schema, the reference of the configuration keys, the effects of their
changes, the data dictionary of the tables and the table of sites. `python -m
outlier_atlas.documentation FOLDER` writes it into a checkout (`make docs`), and a test compares it
with the models that it is generated from.
"""

from __future__ import annotations

import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from outlier_atlas import dictionary, staleness
from outlier_atlas.settings import sites
from outlier_atlas.settings.configuration import Settings

SCHEMA = "workflow/schemas/config.schema.json"
"""Path at which tools of Snakemake look for the schema of a configuration."""

INTRODUCTION = """\
# The configuration

Generated from the settings models by `make docs`; do not edit.

A run is configured by one YAML file: `make run CONFIG=mine.yaml`, or
`snakemake --cores all --resources gpu=2 --configfile mine.yaml`. The file inherits nothing from the
demo (`config/config.yaml`), which is read only if no configuration file is named. Only
`model.source` and `dataset.source` have no default. Editors that support JSON schemas check a file
as you type if it begins with

    # yaml-language-server: $schema=workflow/schemas/config.schema.json

Each stage depends on its own section. A change under `detection` does not rerun the model, and a
change under `report` only renders the report again. A change under `execution` makes nothing stale,
except the number of layer groups if `extraction.layer_groups` is `auto`.
[docs/staleness.md](../docs/staleness.md) lists the rules that a change of each key reruns.
"""


SITES = re.compile(r"(?<=<!-- generated: sites -->\n).*?(?=\n<!-- end -->)", re.DOTALL)


def files(folder: Path) -> dict[str, str]:
    """Return the content of every generated file, by its path in the repository.

    Args:
        folder: the checkout, with the pages of which only a part is generated.
    """
    schema = Settings.model_json_schema() | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Outlier Atlas configuration",
    }
    return {
        SCHEMA: json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        "config/README.md": reference(),
        "docs/sites.md": SITES.sub(
            lambda _: sites.markdown(), (folder / "docs/sites.md").read_text("utf-8")
        ),
        "docs/staleness.md": staleness.table(),
        "docs/tables.md": dictionary.markdown(),
    }


def reference() -> str:
    """Return the reference of all keys of the configuration in Markdown, section by section."""
    lines = [INTRODUCTION]
    for name, section, description in _sections(Settings, ""):
        lines += [f"## `{name}`", "", description, ""]
        lines += ["| key | allowed | default | what it does |", "|---|---|---|---|"]
        for key, field in section.model_fields.items():
            if not _is_section(field):
                row = (f"`{key}`", _allowed(field), _default(field), field.description or "")
                lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |")
        lines.append("")
    return "\n".join(lines)


def _sections(section: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel], str]]:
    for key, field in section.model_fields.items():
        if _is_section(field):
            inner = typing.cast("type[BaseModel]", field.annotation)
            name = f"{path}{key}"
            if not all(_is_section(f) for f in inner.model_fields.values()):
                yield name, inner, field.description or ""
            yield from _sections(inner, f"{name}.")


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _allowed(field: FieldInfo) -> str:
    bounds = [_bound(limit) for limit in field.metadata]
    return ", ".join(filter(None, [_type(field.annotation), *bounds]))


def _type(annotation: Any) -> str:
    """Return the name of a type for the author of a YAML file."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        limits = [limit for meta in arguments[1:] for limit in getattr(meta, "metadata", [meta])]
        bounds = ", ".join(filter(None, map(_bound, limits)))
        return f"{_type(arguments[0])} {bounds}".rstrip()
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(member) for member in arguments if member is not type(None))
    if origin is tuple:
        return f"list `[{', '.join(_type(member).replace('`', '') for member in arguments)}]`"
    if origin is list:
        return f"list of {_type(arguments[0])}"
    return {int: "whole number", float: "number", str: "text", bool: "`true`, `false`"}[annotation]


def _bound(limit: object) -> str:
    if isinstance(limit, Ge):
        return f"at least {limit.ge}"
    if isinstance(limit, Gt):
        return f"above {limit.gt}"
    if isinstance(limit, Le):
        return f"at most {limit.le}"
    if isinstance(limit, Lt) and limit.lt != 2**31:
        return f"below {limit.lt}"
    return ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "none (required)"
    return "" if field.default is None else f"`{json.dumps(field.default)}`"


def main(folder: Path) -> None:
    """Write every generated file into a checkout."""
    for path, text in files(folder).items():
        (folder / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
