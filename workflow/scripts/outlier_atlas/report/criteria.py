"""The report's sections on super weights, super experts, and tokens that are outliers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlier_atlas import tables
from outlier_atlas.report.text import count, listed, number, shown
from outlier_atlas.visible import visible

Row = dict[str, Any]
Cells = list[str]


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
    """

    name: str
    title: str
    noun: str
    table: tables.Table
    head: tuple[str, ...]
    cells: Callable[[Row], Cells]
    order: Callable[[Row], float]


def _weight(row: Row) -> Cells:
    weight = "several" if row["weight"] is None else number(row["weight"])
    place = f"[{row['row']}, {row['column']}]"
    return [str(row["layer"]), place, weight, number(row["input"]), number(row["output"])]


def _expert(row: Row) -> Cells:
    growth = "first" if row["growth"] is None else number(row["growth"])
    return [
        str(row["layer"]), str(row["expert"]), number(row["value"]), number(row["quantile"]),
        growth,
    ]  # fmt: skip


def _token(reference: str) -> Callable[[Row], Cells]:
    def cells(row: Row) -> Cells:
        large = [number(row["value"]), number(row[f"{reference}_ratio"])]
        return [str(row["layer"]), str(row["channel"]), *large]

    return cells


SHAPES = (
    Shape(
        "super_weights", "Super weights", "layer", tables.SUPER_WEIGHTS,
        ("layer", "weight", "its value", "largest input", "largest output"),
        _weight, lambda row: row["layer"],
    ),
    Shape(
        "super_experts", "Super experts", "expert", tables.SUPER_EXPERTS,
        ("layer", "expert", "largest output", "quantile of all", "growth of the residual stream"),
        _expert, lambda row: row["layer"],
    ),
    Shape(
        "systematic_outliers", "Systematic outliers", "token", tables.SYSTEMATIC_OUTLIERS,
        ("layer", "channel", "largest", "times the mean"),
        _token("mean"), lambda row: -row["mean_ratio"],
    ),
    Shape(
        "token_outliers", "Token outliers", "token", tables.TOKEN_OUTLIERS,
        ("layer", "channel", "largest", "times the median token's"),
        _token("median"), lambda row: -row["median_ratio"],
    ),
)  # fmt: skip


def sections(
    folder: Path, criteria: Mapping[str, Row], most: int, text: bool
) -> list[dict[str, Any]]:
    """What the sections show.

    Args:
        folder: of the tables.
        criteria: the rows of `criteria` by name.
        most: rows that each table shows.
        text: whether tokens are named by their text; by their id otherwise.
    """
    return [_section(shape, folder, criteria[shape.name], most, text) for shape in SHAPES]


def _section(shape: Shape, folder: Path, criterion: Row, most: int, text: bool) -> dict[str, Any]:
    rows = tables.read(folder, shape.table).to_pylist()
    found = sorted((row for row in rows if row.get("super_weight", True)), key=shape.order)
    return {
        "id": shape.name.replace("_", "-"),
        "title": shape.title,
        "table": shape.name,
        "criterion": criterion,
        "head": [*shape.head, "sequence", "position"],
        "rows": [
            {
                "cells": [*shape.cells(row), str(row["sequence"]), str(row["position"])],
                "token": visible(row["token_text"]) if text else f"id {row['token_id']}",
            }
            for row in found[:most]
        ],
        "shown": shown(len(found), most, shape.noun),
        "classes": classes(found),
    }


def classes(rows: Sequence[Row]) -> str:
    """How many findings each class of tokens has, in a sentence; empty where there are none."""
    counted = Counter(row["token_class"] for row in rows if "token_class" in row)
    if not counted:
        return ""
    parts = [f"{n:,} {name.replace('_', ' ')}" for name, n in counted.most_common()]
    return f"Of {count(len(rows), 'finding')} (token and layer), {listed(parts)}."
