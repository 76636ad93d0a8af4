"""Section of the report that compares another run with this run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from outlier_atlas.criteria.shows import COMPARED, TITLES
from outlier_atlas.report.compared_runs import (
    NOT_MEASURED,
    Both,
    Side,
    of_model,
    refuse_missing,
    refuse_other_shape,
)
from outlier_atlas.report.facts import start
from outlier_atlas.sanitize import visible
from outlier_atlas.text import count

Row = dict[str, Any]


def section(here: Path, there: Path) -> Row:
    """Return the values of the section; `parts` come from the criteria and measures.

    Args:
        here: folder of this run.
        there: folder of the other run.

    Raises:
        ValueError: the other run is missing, or its model has another shape, or a record is
            damaged.
    """
    refuse_missing(there)
    both = Side.read(here), Side.read(there)
    refuse_other_shape(*both)
    return {
        "name": visible(there.name),
        "of_model": of_model(*both),
        "rows": [*_facts(both), *_numbers(both), *_findings(both)],
        "parts": [part for show in COMPARED if (part := show.compared_part(both))],
    }


def _facts(both: Both) -> list[Row]:
    """Return rows on the inputs of both runs, from their records."""
    shown: tuple[tuple[str, Callable[[Side], str]], ...] = (
        ("model", lambda s: visible(s.model)),
        (
            "begin-of-sequence token",
            lambda s: start(s.tokens),
        ),
        ("text", lambda s: visible(str(s.tokens["source"]))),
        (
            "tokens",
            lambda s: f"{s.tokens['tokens']:,} in {count(s.tokens['sequences'], 'sequence')}",
        ),
        ("dtype", lambda s: visible(str(s.store["dtype"]))),
        ("tokens left out", lambda s: s.left_out or "none"),
    )
    return [{"what": name, "sides": [of(side) for side in both]} for name, of in shown]


def _numbers(both: Both) -> list[Row]:
    """Return rows on the numbers of the whole run."""
    numbers = [number for show in COMPARED for number in show.compared_numbers]
    return [{"what": each.what, "sides": [each.of(side) for side in both]} for each in numbers]


def _findings(both: Both) -> list[Row]:
    """Return a row with the number of findings of each criterion that a run measured."""
    rows = []
    for name, title in TITLES.items():
        criteria = [side.criterion(name) for side in both]
        if any(each["measured"] for each in criteria):
            alike = len({each["definition"] for each in criteria}) == 1
            what = f"{title}: findings" if alike else f"{title}: findings, otherwise defined there"
            rows.append({"what": what, "sides": [_count_of(each) for each in criteria]})
    return rows


def _count_of(criterion: Row) -> str:
    return f"{criterion['findings']:,}" if criterion["measured"] else NOT_MEASURED
