"""The interface of a `show.py`: what the report asks of a criterion or measure."""

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
    """A sentence, and the definition of the numbers in it.

    Attributes:
        striking: the order on the first screen, the largest first. Outliers that were found come
            before criteria without findings, and these before what was not measured.
    """

    text: str
    definition: str
    striking: float


class Evidence:
    """The tables of a run as rows; each is read when it is first needed, and only once.

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
    """Embeds a figure of the run."""

    def __call__(self, name: str, alt: str, caption: str) -> Row:
        """Return what the page shows.

        Args:
            name: of its file, without theme and ending.
            alt: the alternative text.
            caption: the text under it.
        """


@dataclass(frozen=True)
class Page:
    """The inputs of the sections of a page.

    Attributes:
        report: the section `report` of the configuration.
        configuration: the whole configuration.
        evidence: the tables.
        tokens: the token store.
        picture: embeds a figure.
    """

    report: ReportSettings
    configuration: Mapping[str, Any]
    evidence: Evidence
    tokens: TokenStore
    picture: Picture


@dataclass(frozen=True)
class ReportSection:
    """A section of the page.

    Attributes:
        id: its anchor.
        label: the text of the link to it.
        template: the Jinja template, from the folder of the criteria. It also has `left_out` and
            `text_shown`.
        values: what the template shows.
        shown: whether the page links to it; if not, the template shows nothing.
    """

    id: str
    label: str
    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    shown: bool = True


@dataclass(frozen=True)
class Finiteness:
    """How many values of a site and layer are NaN or infinite.

    Attributes:
        some: whether any value is finite.
    """

    site: str
    layer: int
    nan: int
    infinite: int
    some: bool


@dataclass(frozen=True)
class ComparedNumber:
    """A number of two runs that are compared: a row of the comparison's first table.

    Attributes:
        what: the name of the number.
        table: the table with the number, one of `Description.compared`.
        column: the column of the number, and of its interval if the table has one.
        form: writes the number.
        row: chooses the row with the number; None where the run has no such row.
    """

    what: str
    table: Table
    column: str
    form: Callable[[float], str]
    row: Callable[[Sequence[Row]], Row | None]

    def of(self, side: Side) -> str:
        """Return the number of a run, with its interval."""
        row = self.row(side.rows(self.table))
        if row is None:
            return NOT_MEASURED
        without = {f"{self.column}_low": None, f"{self.column}_high": None}
        return spanned(without | row, self.column, self.form)


@dataclass(frozen=True)
class ComparedPart:
    """A part of the section that compares two runs.

    Attributes:
        template: the Jinja template, from the folder of the criteria. `other` is the name of the
            other run.
        values: what the template shows.
    """

    template: str
    values: Mapping[str, Any]


LAST = 100
"""The rank of a finding that comes after equally striking ones of other criteria."""


class Show(ABC):
    """How the report shows a criterion or measure.

    Attributes:
        description: name and tables.
        title: its name in the list of what was not measured, and where two runs are compared.
        rank: the order of its findings among equally striking ones; the lowest comes first.
        compared_numbers: the numbers of the whole run that are compared with another run's.
        ablated: the names of its targets in the table `ablations`, as a sentence calls them.
    """

    description: ClassVar[Description]
    title: ClassVar[str]
    rank: ClassVar[int] = LAST
    compared_numbers: ClassVar[tuple[ComparedNumber, ...]] = ()
    ablated: ClassVar[Mapping[str, str]] = {}

    def findings(self, evidence: Evidence, text: bool) -> list[Finding]:
        """Return sentences for the first screen; by default none.

        Args:
            text: name tokens by their text; otherwise by their id.
        """
        return []

    def headline(self, evidence: Evidence) -> str:
        """Return a sentence for the first lines of the page; by default nothing."""
        return ""

    def facts(self, evidence: Evidence) -> list[tuple[str, str]]:
        """Return names and values for the list of what was run; by default none."""
        return []

    def finiteness(self, evidence: Evidence) -> Iterable[Finiteness]:
        """Return how much is finite of the sites that its own tables count; by default nothing.

        NaN and infinite values become an alarm above the findings.
        """
        return ()

    def section(self, page: Page) -> ReportSection | None:
        """Return its section; by default none."""
        return None

    def compared_part(self, both: Both) -> ComparedPart | None:
        """Return its part of the comparison with another run; by default none.

        Args:
            both: this run and the other one, with the rows of the tables in
                `Description.compared`.
        """
        return None

    def switched_off(self, page: Page) -> str:
        """Return why a measure was not made, for the list of what was not measured; or "".

        The criteria in that list come from the table `criteria`.
        """
        return ""

    def criterion(self, evidence: Evidence) -> Row:
        """Return its row of the table `criteria`."""
        return evidence.criteria[self.description.name]


def place(site: str) -> str:
    """Return a site as a sentence names it."""
    name = "residual stream" if site.startswith("resid_") else SITE_NAMES[site]
    return f"{name} ({site})"


def not_measured(criterion: Row, name: str) -> list[Finding]:
    """Return the findings for a criterion whose sites were not measured."""
    missing = listed(criterion["missing_sites"].split())
    sites = listed(criterion["sites"].split())
    return [
        Finding(f"{name} were not measured: {missing} is not among the run's sites.", "", 0),
        Finding(f"Nothing is known here about {name}; they are defined on {sites}.", "", 0),
    ]


def nothing_known(criterion: Row, name: str) -> list[Finding]:
    """Return the findings for a criterion without a finite value in any layer."""
    sites = listed(criterion["sites"].split())
    text = f"Nothing is known of {name}: in no layer is a value of {sites} finite."
    return [Finding(text, criterion["definition"], 2)]


def left_out(criterion: Row) -> str:
    """Return a sentence on the values that a criterion excluded as not finite; or "".

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
    """Return findings, each followed by what the criterion excluded as not finite."""
    behind = left_out(criterion) if criterion["measured"] else ""
    return [replace(finding, text=f"{finding.text}{behind}") for finding in findings]


def nothing_finite(criterion: Row) -> bool:
    """Whether a criterion was measured, but no layer had a finite value."""
    return bool(criterion["measured"] and criterion["findings"] is None)
