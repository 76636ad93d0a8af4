"""Report section and findings on super weights."""

from __future__ import annotations

from collections.abc import Sequence

from outlier_atlas.criteria.finding_table import Cells, FindingTable, plain
from outlier_atlas.criteria.show import (
    Evidence,
    Finding,
    Page,
    Row,
    with_left_out,
)
from outlier_atlas.criteria.super_weights.tables import DESCRIPTION, SUPER_WEIGHTS
from outlier_atlas.settings.sites import SUPER_WEIGHT_SITES
from outlier_atlas.text import (
    interval,
    number,
)


class SuperWeightsShow(FindingTable):
    """The section on super weights and on the maxima of the down projections."""

    description = DESCRIPTION
    title = "Super weights"
    rank = 10
    ablated = {
        "super_weight": "super weight",
        "super_weights": "super weights together",
        "later_super_weight": "super weight of a later search, with those found before",
    }
    noun = "weight"
    head = ("layer", "weight", "its value", "input", "largest output", "share of the output")

    def findings(self, evidence: Evidence, text: bool) -> list[Finding]:
        criterion = self.criterion(evidence)
        rows = evidence.rows(SUPER_WEIGHTS)
        return with_left_out(sentence(rows, criterion["definition"]), criterion)

    def finding_rows(self, rows: Sequence[Row]) -> list[Row]:
        return [row for row in rows if row["super_weight"]]

    def order(self, row: Row) -> float:
        return float(row["layer"])

    def cells(self, row: Row) -> Cells:
        weight = "not known" if row["weight"] is None else number(row["weight"])
        expert = "" if row["expert"] is None else f" of expert {row['expert']}"
        place = f"[{row['row']}, {row['column']}]{expert}"
        output = number(row["output"]), interval(row, "output", number)
        share = f"{number(100 * row['share'])} %"
        return [*plain(row["layer"], place, weight, number(row["input"])), output, *plain(share)]

    def picture(self, page: Page) -> Row | None:
        out = SUPER_WEIGHT_SITES[1]
        if out not in self.criterion(page.evidence)["sites"].split():
            return None
        return page.picture(
            f"{out}-down_proj",
            "Largest |output| of the down projection and |input| at its token, by layer",
            "The largest |output| of each layer's down projection over all tokens, and the largest "
            "|input| at the same token; super weights are named by [row, column]. Logarithmic "
            "axis.",
        )


def sentence(rows: Sequence[Row], definition: str) -> list[Finding]:
    """Return a finding on the super weight with the largest output; none without super weights.

    Args:
        rows: rows of the table `super_weights`.
        definition: definition of the criterion.
    """
    passing = [row for row in rows if row["super_weight"]]
    if not passing:
        return []
    top = max(passing, key=lambda row: abs(row["output"]))
    weight = "" if top["weight"] is None else f" = {number(top['weight'])}"
    expert = "" if top["expert"] is None else f" of expert {top['expert']}"
    text = (
        f"The down projection{expert} of layer {top['layer']} has a super weight, "
        f"W[{top['row']}, {top['column']}]{weight}: at one token its input is "
        f"{number(top['input'])} in channel {top['column']}, and it makes "
        f"{number(100 * top['share'])} % of the output of {number(top['output'])} in channel "
        f"{top['row']}."
    )
    others = f" The run has {len(passing):,} super weights in all." if len(passing) > 1 else ""
    return [Finding(text + others, definition, 4)]
