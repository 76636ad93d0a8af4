"""Report section and findings on systematic outliers."""

from __future__ import annotations

from outlier_atlas.criteria.finding_table import Cells, FindingTable, large_token
from outlier_atlas.criteria.show import (
    Row,
)
from outlier_atlas.criteria.systematic_outliers.tables import DESCRIPTION


class SystematicOutliersShow(FindingTable):
    """The section on systematic outliers, with one row for each token and channel."""

    description = DESCRIPTION
    title = "Systematic outliers"
    noun = "token"
    head = ("layers", "channel", "largest", "times the mean")
    joined = True

    def order(self, row: Row) -> float:
        return -float(row["mean_ratio"])

    def cells(self, row: Row) -> Cells:
        return large_token(row, "mean")
