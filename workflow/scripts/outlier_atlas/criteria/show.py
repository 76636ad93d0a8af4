"""The interface of a `show.py`, which presents a criterion or measure in the report."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

from outlier_atlas.criteria.description import Description
from outlier_atlas.criteria.tables import CRITERIA
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.report.compared_runs import NOT_MEASURED, Both, Side
from outlier_atlas.settings.report import ReportSettings
from outlier_atlas.settings.sites import SITE_NAMES
from outlier_atlas.tables.files import read
from outlier_atlas.tables.table import Table
from outlier_atlas.text import layers, listed, spanned

Row = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """A sentence of the report, with the definition of its numbers.

    Attributes:
        text: the sentence.
        definition: the definition of the numbers in the sentence.
        striking: sort key on the first screen, largest first. Criteria with outliers come before
            criteria without findings, and those before criteria that were not measured.
    """

    text: str
    definition: str
    striking: float


class Evidence:
    """The tables of a run as rows; each table is read once, when it is first needed.

    Args:
        folder: the folder of the tables.
        sequences: number of sequences of the run.
    """

    def __init__(self, folder: Path, sequences: int) -> None:
        self.folder = folder
        self.sequences = sequences
        self._rows: dict[str, list[Row]] = {}

    def rows(self, table: Table) -> list[Row]:
        """Return the rows of a table."""
        if table.name not in self._rows:
            self._rows[table.name] = read(self.folder, table).to_pylist()
        return self._rows[table.name]

    @cached_property
    def criteria(self) -> Mapping[str, Row]:
        """The rows of the table `criteria`, by the name of the criterion."""
        return {row["criterion"]: row for row in self.rows(CRITERIA)}


class Picture(Protocol):
    """A function that embeds a figure of the run."""

    def __call__(self, name: str, alt: str, caption: str) -> Row:
        """Return the values for the template.

        Args:
            name: file name of the figure, without theme and extension.
            alt: alternative text.
            caption: text below the figure.
        """


@dataclass(frozen=True)
class Page:
    """The inputs of the sections of the report.

    Attributes:
        report: the section `report` of the configuration.
        configuration: the whole configuration.
        evidence: the tables of the run.
        tokens: the token store.
        picture: a function that embeds a figure.
    """

    report: ReportSettings
    configuration: Mapping[str, Any]
    evidence: Evidence
    tokens: TokenStore
    picture: Picture


@dataclass(frozen=True)
class ReportSection:
    """A section of the report.

    Attributes:
        id: anchor of the section.
        label: text of the link to the section.
        template: path of the Jinja template in the folder `criteria`. The template can also use
            `left_out` and `text_shown`.
        values: values for the template.
        shown: whether the page links to the section; otherwise the template renders nothing.
    """

    id: str
    label: str
    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    shown: bool = True


@dataclass(frozen=True)
class Finiteness:
    """The number of values of a site and layer that are NaN or infinite.

    Attributes:
        site: the site.
        layer: the layer.
        nan: number of NaN values.
        infinite: number of infinite values.
        some: whether at least one value is finite.
    """

    site: str
    layer: int
    nan: int
    infinite: int
    some: bool


@dataclass(frozen=True)
class ComparedNumber:
    """A number that is compared between two runs, in a row of the first table.

    Attributes:
        what: name of the number.
        table: the table with the number, one of `Description.compared`.
        column: the column of the number, and of its interval if the table has one.
        form: a function that formats the number.
        row: a function that returns the row with the number; None if the run has no such row.
    """

    what: str
    table: Table
    column: str
    form: Callable[[float], str]
    row: Callable[[Sequence[Row]], Row | None]

    def of(self, side: Side) -> str:
        """Return the formatted number of a run, with its interval."""
        row = self.row(side.rows(self.table))
        if row is None:
            return NOT_MEASURED
        without = {f"{self.column}_low": None, f"{self.column}_high": None}
        return spanned(without | row, self.column, self.form)


@dataclass(frozen=True)
class ComparedPart:
    """A part of the section that compares two runs.

    Attributes:
        template: path of the Jinja template in the folder `criteria`. In the template, `other` is
            the name of the other run.
        values: values for the template.
    """

    template: str
    values: Mapping[str, Any]


LAST = 100
"""Default rank: the findings come after equally striking findings of other criteria."""


class Show(ABC):
    """The presentation of a criterion or measure in the report.

    Attributes:
        description: name and tables of the criterion or measure.
        title: name in the list of unmeasured criteria and in the comparison of runs.
        rank: sort key among equally striking findings, lowest first.
        compared_numbers: numbers of the whole run that are compared between two runs.
        ablated: names of the ablation targets for sentences, by name in the table `ablations`.
    """

    description: ClassVar[Description]
    title: ClassVar[str]
    rank: ClassVar[int] = LAST
    compared_numbers: ClassVar[tuple[ComparedNumber, ...]] = ()
    ablated: ClassVar[Mapping[str, str]] = {}

    def findings(self, evidence: Evidence, text: bool) -> list[Finding]:
        """Return the findings for the first screen; by default none.

        Args:
            evidence: the tables of the run.
            text: whether tokens are named by text; otherwise they are named by id.
        """
        return []

    def headline(self, evidence: Evidence) -> str:
        """Return a sentence for the first lines of the page; by default ""."""
        return ""

    def facts(self, evidence: Evidence) -> list[tuple[str, str]]:
        """Return names and values for the list of facts about the run; by default none."""
        return []

    def finiteness(self, evidence: Evidence) -> Iterable[Finiteness]:
        """Return the counts of NaN and infinite values in the tables of this criterion or measure.

        By default there are none. The counts become an alarm above the findings.
        """
        return ()

    def section(self, page: Page) -> ReportSection | None:
        """Return the section of the report; by default None."""
        return None

    def compared_part(self, both: Both) -> ComparedPart | None:
        """Return the part of the comparison with another run; by default None.

        Args:
            both: this run and the other run, with the rows of the tables in
                `Description.compared`.
        """
        return None

    def switched_off(self, page: Page) -> str:
        """Return the reason why the measure is switched off, or "".

        The reason appears in the list of unmeasured criteria and measures. That list takes
        criteria from the table `criteria`.
        """
        return ""

    def criterion(self, evidence: Evidence) -> Row:
        """Return the row of this criterion in the table `criteria`."""
        return evidence.criteria[self.description.name]


def place(site: str) -> str:
    """Return the name of a site for a sentence."""
    name = "residual stream" if site.startswith("resid_") else SITE_NAMES[site]
    return f"{name} ({site})"


def not_measured(criterion: Row, name: str) -> list[Finding]:
    """Return the findings for a criterion whose sites were not measured."""
    missing = criterion["missing_sites"].split()
    sites = listed(criterion["sites"].split())
    reason = f"{listed(missing)} {'is' if len(missing) == 1 else 'are'} not among the run's sites"
    return [
        Finding(f"{name} were not measured: {reason}.", "", 0),
        Finding(f"Nothing is known here about {name}; they are defined on {sites}.", "", 0),
    ]


def nothing_known(criterion: Row, name: str) -> list[Finding]:
    """Return the findings for a criterion without a finite value in any layer."""
    sites = listed(criterion["sites"].split())
    text = f"Nothing is known of {name}: no value of {sites} is finite in any layer."
    return [Finding(text, criterion["definition"], 2)]


def left_out(criterion: Row) -> str:
    """Return a sentence on the NaN and infinite values that a criterion excluded, or "".

    Args:
        criterion: a row of the table `criteria`.
    """
    if without := [int(layer) for layer in criterion["layers_not_finite"].split()]:
        return f" No value is finite in {layers(without)}, which could not be looked at."
    if criterion["not_finite"]:
        sites = listed(criterion["sites"].split())
        return f" {criterion['not_finite']:,} values of {sites} are NaN or infinite, and left out."
    return ""


def with_left_out(findings: Iterable[Finding], criterion: Row) -> list[Finding]:
    """Return the findings with the sentence of `left_out` appended to each."""
    behind = left_out(criterion) if criterion["measured"] else ""
    return [replace(finding, text=f"{finding.text}{behind}") for finding in findings]


def nothing_finite(criterion: Row) -> bool:
    """Return whether a criterion was measured and no layer has a finite value."""
    return bool(criterion["measured"] and criterion["findings"] is None)
