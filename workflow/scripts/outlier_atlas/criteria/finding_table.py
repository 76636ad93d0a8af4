"""A section that consists of one table of findings, each with its token."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import ClassVar

from outlier_atlas.criteria.show import Page, ReportSection, Row, Show
from outlier_atlas.sanitize import visible
from outlier_atlas.text import count, listed, number, ranges, shown

Cells = list[tuple[str, str]]
"""The text of each column, and the interval below it; empty without an interval."""


class FindingTable(Show):
    """A criterion whose findings are shown in one table.

    Attributes:
        heading: heading of the section; by default `title`.
        noun: noun for a finding.
        head: names of the columns, before the columns for sequence, position and token.
        joined: whether a row of the report combines all layers of a token and channel.
    """

    heading: ClassVar[str] = ""
    noun: ClassVar[str]
    head: ClassVar[tuple[str, ...]]
    joined: ClassVar[bool] = False

    @abstractmethod
    def cells(self, row: Row) -> Cells:
        """Return the cells of a row."""

    @abstractmethod
    def order(self, row: Row) -> float:
        """Return the sort key of a row; rows are shown in ascending order."""

    def finding_rows(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows of the table that are findings; by default all rows."""
        return list(rows)

    def picture(self, page: Page) -> Row | None:
        """Return the figure above the table; by default None."""
        return None

    def section(self, page: Page) -> ReportSection | None:
        criterion = self.criterion(page.evidence)
        if not criterion["measured"]:
            return None
        name, most, text = self.description.name, page.report.rows, page.report.text != "none"
        findings = self.finding_rows(page.evidence.rows(self.description.tables[0]))
        rows = sorted(joined(findings) if self.joined else findings, key=self.order)
        heading = self.heading or self.title
        values = {
            "id": name.replace("_", "-"),
            "title": heading,
            "table": self.description.tables[0].name,
            "criterion": criterion,
            "picture_above": self.picture(page),
            "head": [*self.head, "sequence", "position"],
            "rows": [
                {
                    "cells": [*self.cells(row), *plain(row["sequence"], row["position"])],
                    "token": visible(row["token_text"]) if text else f"id {row['token_id']}",
                }
                for row in rows[:most]
            ],
            "shown": shown(len(rows), most, self.noun),
            "joined": self.joined,
            "classes": classes(findings),
        }
        return ReportSection(str(values["id"]), heading, "finding_table.html.j2", values)


def plain(*values: object) -> Cells:
    """Return cells without intervals."""
    return [(str(value), "") for value in values]


def large_token(row: Row, reference: str) -> Cells:
    """Return the cells of a token that is an outlier as a whole.

    Args:
        row: a row of the table.
        reference: column of the number that the largest value is compared with.
    """
    large = number(row["value"]), number(row[f"{reference}_ratio"])
    return plain(row["layers"], row["channel"], *large)


def joined(rows: Sequence[Row]) -> list[Row]:
    """Return the row with the largest |value| of each token and channel.

    The column `layers` is added and lists all layers of the token and channel.
    """
    by_place: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows:
        by_place[row["token_index"], row["channel"]].append(row)
    return [
        max(group, key=lambda row: abs(row["value"]))
        | {"layers": ranges(row["layer"] for row in group)}
        for group in by_place.values()
    ]


def classes(rows: Sequence[Row]) -> str:
    """Return a sentence with the number of findings in each class of tokens, or ""."""
    counted = Counter(row["token_class"] for row in rows if "token_class" in row)
    if not counted:
        return ""
    parts = [f"{n:,} {name.replace('_', ' ')}" for name, n in counted.most_common()]
    return f"Of {count(len(rows), 'finding')} (token and layer), {listed(parts)}."
