"""Report section and findings on routed experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from outlier_atlas.criteria.experts.tables import DESCRIPTION, EXPERT_MAGNITUDES
from outlier_atlas.criteria.show import (
    Evidence,
    Finiteness,
    Page,
    ReportSection,
    Row,
    Show,
)
from outlier_atlas.settings.sites import EXPERT_OUT
from outlier_atlas.text import (
    count,
    ranges,
    shown,
)

DEFINITION = (
    "The down_proj output of each expert over all tokens routed to it: with its bias, before the "
    "router's weight and before any norm behind it. Shared experts are not routed and not among "
    "them."
)


class ExpertsShow(Show):
    """The section on experts with few tokens and on experts with the largest outputs."""

    description = DESCRIPTION
    title = "Experts"

    def section(self, page: Page) -> ReportSection:
        rows = page.evidence.rows(EXPERT_MAGNITUDES)
        values: Row = {}
        if rows:
            min_tokens = page.configuration["detection"]["experts"]["min_tokens"]
            values = _values(rows, min_tokens, page.report.rows)
            values["heatmap"] = page.picture(
                f"{EXPERT_OUT}-experts",
                "Largest |down_proj output| by layer and expert",
                "The largest |down_proj output| of each expert, over all tokens routed to it; "
                "logarithmic colour. An unseen expert has no colour. The experts with the largest "
                "are named above.",
            )
        values["measured"] = bool(rows)
        return ReportSection(
            "experts", self.title, "experts/section.html.j2", values, shown=bool(rows)
        )

    def finiteness(self, evidence: Evidence) -> Iterator[Finiteness]:
        for row in evidence.rows(EXPERT_MAGNITUDES):
            some = row["value"] is not None
            yield Finiteness(EXPERT_OUT, row["layer"], row["nan"], row["infinite"], some)


def _values(rows: Sequence[Row], min_tokens: int, most: int) -> Row:
    """Return the values for the template of the section.

    Args:
        rows: rows of the table `expert_magnitudes`, by layer and expert.
        min_tokens: experts with fewer tokens are listed.
        most: maximum number of rows of each table.
    """
    few = [row for row in rows if not row["enough_tokens"]]
    layers = [_layer(layer, list(each)) for layer, each in groupby(few, key=_layer_of)]
    largest = sorted((row for row in rows if row["value"] is not None), key=_by_magnitude)
    return {
        "definition": DEFINITION,
        "seen": seen(len(few), len(rows), min_tokens),
        "few": layers[:most],
        "few_shown": shown(len(layers), most, "layer"),
        "largest": largest[:most],
        "largest_shown": shown(len(largest), most, "expert"),
    }


def seen(few: int, experts: int, min_tokens: int) -> str:
    """Return a sentence on the number of experts with too few tokens."""
    if not few:
        return f"All {count(experts, 'expert')} saw at least {count(min_tokens, 'token')}."
    of_all = f"{few:,} of {count(experts, 'expert')}"
    if min_tokens == 1:
        is_are, it_them = ("is", "it") if few == 1 else ("are", "them")
        return f"{of_all} {is_are} unseen: no token of this run was routed to {it_them}."
    return f"{of_all} saw fewer than {count(min_tokens, 'token')}."


def _layer(layer: int, rows: Sequence[Row]) -> Row:
    return {
        "layer": layer,
        "number": len(rows),
        "experts": ranges(row["expert"] for row in rows),
        "most_tokens": max(row["tokens"] for row in rows),
    }


def _layer_of(row: Row) -> int:
    return int(row["layer"])


def _by_magnitude(row: Row) -> tuple[float, int, int]:
    return -abs(row["value"]), row["layer"], row["expert"]
