"""The report's sections on super weights, super experts, and tokens that are outliers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlier_atlas import tables
from outlier_atlas.criteria.super_experts.tables import SUPER_EXPERTS
from outlier_atlas.criteria.super_weights.tables import SUPER_WEIGHTS
from outlier_atlas.criteria.systematic_outliers.tables import SYSTEMATIC_OUTLIERS
from outlier_atlas.criteria.token_outliers.tables import TOKEN_OUTLIERS
from outlier_atlas.report.text import count, interval, listed, number, ranges, shown
from outlier_atlas.visible import visible

Row = dict[str, Any]
Cells = list[tuple[str, str]]
"""Of each column what is shown, and the interval below it; empty where there is none."""


@dataclass(frozen=True)
class Shape:
    """How a criterion's findings are shown.

    Attributes:
        name: of the criterion and of its table.
        title: of the section.
        noun: what a finding is.
        head: of the columns.
        cells: of a row; the token is added.
        order: by which rows come first.
        joined: whether a row of the report joins the layers of a token and channel.
    """

    name: str
    title: str
    noun: str
    table: tables.Table
    head: tuple[str, ...]
    cells: Callable[[Row], Cells]
    order: Callable[[Row], float]
    joined: bool = False


def _weight(row: Row) -> Cells:
    weight = "not known" if row["weight"] is None else number(row["weight"])
    expert = "" if row["expert"] is None else f" of expert {row['expert']}"
    place = f"[{row['row']}, {row['column']}]{expert}"
    output = number(row["output"]), interval(row, "output", number)
    share = f"{number(100 * row['share'])} %"
    return [*_plain(row["layer"], place, weight, number(row["input"])), output, *_plain(share)]


def _expert(row: Row) -> Cells:
    growth = "first" if row["growth"] is None else number(row["growth"])
    value = number(row["value"]), interval(row, "value", number)
    return [*_plain(row["layer"], row["expert"]), value, *_plain(number(row["quantile"]), growth)]


def _token(reference: str) -> Callable[[Row], Cells]:
    def cells(row: Row) -> Cells:
        large = number(row["value"]), number(row[f"{reference}_ratio"])
        return _plain(row["layers"], row["channel"], *large)

    return cells


def _plain(*shown: object) -> Cells:
    return [(str(one), "") for one in shown]


SHAPES = (
    Shape(
        "super_weights", "Super weights", "weight", SUPER_WEIGHTS,
        ("layer", "weight", "its value", "input", "largest output", "share of the output"),
        _weight, lambda row: row["layer"],
    ),
    Shape(
        "super_experts", "Super experts", "expert", SUPER_EXPERTS,
        ("layer", "expert", "largest output", "quantile of all", "growth of the residual stream"),
        _expert, lambda row: row["layer"],
    ),
    Shape(
        "systematic_outliers", "Systematic outliers", "token", SYSTEMATIC_OUTLIERS,
        ("layers", "channel", "largest", "times the mean"),
        _token("mean"), lambda row: -row["mean_ratio"], joined=True,
    ),
    Shape(
        "token_outliers", "Token outliers", "token", TOKEN_OUTLIERS,
        ("layers", "channel", "largest", "times the median token's"),
        _token("median"), lambda row: -row["median_ratio"], joined=True,
    ),
)  # fmt: skip

TITLES = {
    "massive_activations": "Massive activations",
    "attention_sinks": "Attention sinks",
    "llm_int8": "LLM.int8() outlier features",
    **{shape.name: shape.title for shape in SHAPES},
    "super_experts": "Super experts (of a mixture of experts)",
}
"""What criteria are called where they were not measured."""


def sections(
    folder: Path, criteria: Mapping[str, Row], most: int, text: bool
) -> list[dict[str, Any]]:
    """What the sections on measured criteria show.

    Args:
        folder: of the tables.
        criteria: the rows of `criteria` by name.
        most: rows that each table shows.
        text: whether tokens are named by their text; by their id otherwise.
    """
    return [
        _section(shape, folder, criteria[shape.name], most, text)
        for shape in SHAPES
        if criteria[shape.name]["measured"]
    ]


def _section(shape: Shape, folder: Path, criterion: Row, most: int, text: bool) -> dict[str, Any]:
    rows = tables.read(folder, shape.table).to_pylist()
    found = [row for row in rows if row.get("super_weight", True)]
    rows = sorted(joined(found) if shape.joined else found, key=shape.order)
    return {
        "id": shape.name.replace("_", "-"),
        "title": shape.title,
        "table": shape.name,
        "criterion": criterion,
        "head": [*shape.head, "sequence", "position"],
        "rows": [
            {
                "cells": [*shape.cells(row), *_plain(row["sequence"], row["position"])],
                "token": visible(row["token_text"]) if text else f"id {row['token_id']}",
            }
            for row in rows[:most]
        ],
        "shown": shown(len(rows), most, shape.noun),
        "joined": shape.joined,
        "classes": classes(found),
    }


def joined(rows: Sequence[Row]) -> list[Row]:
    """One row for a channel of a token: its largest, with all of its layers in words."""
    by_place: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows:
        by_place[row["token_index"], row["channel"]].append(row)
    return [
        max(group, key=lambda row: abs(row["value"]))
        | {"layers": ranges(row["layer"] for row in group)}
        for group in by_place.values()
    ]


def classes(rows: Sequence[Row]) -> str:
    """How many findings each class of tokens has, in a sentence; empty where there are none."""
    counted = Counter(row["token_class"] for row in rows if "token_class" in row)
    if not counted:
        return ""
    parts = [f"{n:,} {name.replace('_', ' ')}" for name, n in counted.most_common()]
    return f"Of {count(len(rows), 'finding')} (token and layer), {listed(parts)}."
