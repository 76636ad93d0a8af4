"""Report lines on perplexity: a headline, and an entry in the list of facts."""

from __future__ import annotations

from collections.abc import Sequence

from outlier_atlas.criteria.perplexity.tables import DESCRIPTION, PERPLEXITY
from outlier_atlas.criteria.show import (
    ComparedNumber,
    Evidence,
    Page,
    Row,
    Show,
)
from outlier_atlas.text import (
    count,
    number,
)


def _whole_run(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row["sequence"] is None), None)


class PerplexityShow(Show):
    """The presentation of perplexity, which has no section."""

    description = DESCRIPTION
    title = "Perplexity"
    compared_numbers = (
        ComparedNumber(
            "perplexity of its own tokens", PERPLEXITY, "perplexity", number, _whole_run
        ),
    )

    def headline(self, evidence: Evidence) -> str:
        return short(evidence.rows(PERPLEXITY))

    def facts(self, evidence: Evidence) -> list[tuple[str, str]]:
        return [("perplexity", line(evidence.rows(PERPLEXITY)))]

    def switched_off(self, page: Page) -> str:
        on = page.configuration["extraction"]["perplexity"]
        return "" if on else "extraction.perplexity is false"


def line(rows: Sequence[Row]) -> str:
    """Return the perplexity of the whole run with its definition.

    Args:
        rows: rows of the table `perplexity`.
    """
    if not rows:
        return "not computed (extraction.perplexity)"
    whole = rows[-1]
    if whole["nan"]:
        return f"none: the loss of {count(whole['nan'], 'token')} is NaN"
    if whole["perplexity"] is None:
        return "none: no token has another before it in its sequence"
    return (
        f"{whole['perplexity']:,.4g}: exp of the mean negative log-likelihood ({whole['loss']:.4f} "
        f"nats) of {count(whole['tokens'], 'token')}, each given all before it in its own sequence"
    )


def short(rows: Sequence[Row]) -> str:
    """Return a sentence with the perplexity for the first lines of the report, or ""."""
    if not rows or rows[-1]["perplexity"] is None:
        return ""
    return (
        f"Perplexity {number(rows[-1]['perplexity'])}, exp of the mean negative log-likelihood of "
        f"these tokens."
    )
