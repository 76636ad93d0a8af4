"""Report section and findings on super experts."""

from __future__ import annotations

from collections.abc import Sequence

from outlier_atlas.criteria.finding_table import Cells, FindingTable, plain
from outlier_atlas.criteria.show import (
    Evidence,
    Finding,
    Row,
    with_left_out,
)
from outlier_atlas.criteria.super_experts.tables import DESCRIPTION, SUPER_EXPERTS
from outlier_atlas.text import (
    count,
    interval,
    number,
)


class SuperExpertsShow(FindingTable):
    """The section on super experts."""

    description = DESCRIPTION
    title = "Super experts (of a mixture of experts)"
    heading = "Super experts"
    rank = 20
    ablated = {"super_expert": "super expert"}
    noun = "expert"
    head = ("layer", "expert", "largest output", "quantile of all", "growth of the residual stream")

    def findings(self, evidence: Evidence, text: bool) -> list[Finding]:
        criterion = self.criterion(evidence)
        rows = evidence.rows(SUPER_EXPERTS)
        return with_left_out(sentence(rows, criterion["definition"]), criterion)

    def order(self, row: Row) -> float:
        return float(row["layer"])

    def cells(self, row: Row) -> Cells:
        growth = "first" if row["growth"] is None else number(row["growth"])
        value = number(row["value"]), interval(row, "value", number)
        return [*plain(row["layer"], row["expert"]), value, *plain(number(row["quantile"]), growth)]


def sentence(rows: Sequence[Row], definition: str) -> list[Finding]:
    """Return a finding on the super expert with the largest output; none without super experts.

    Args:
        rows: rows of the table `super_experts`.
        definition: definition of the criterion.
    """
    if not rows:
        return []
    top = max(rows, key=lambda row: abs(row["value"]))
    text = (
        f"The run has {count(len(rows), 'super expert')}: the output of expert {top['expert']} of "
        f"layer {top['layer']} reaches {number(top['value'])} in channel {top['channel']}."
    )
    return [Finding(text, definition, 4)]
