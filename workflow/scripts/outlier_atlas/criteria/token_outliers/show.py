"""Report section and findings on token outliers."""

from __future__ import annotations

from outlier_atlas.criteria.finding_table import Cells, FindingTable, large_token
from outlier_atlas.criteria.show import (
    Row,
)
from outlier_atlas.criteria.token_outliers.tables import DESCRIPTION


class TokenOutliersShow(FindingTable):
    """The section on token outliers, with one row for each token and channel."""

    description = DESCRIPTION
    title = "Token outliers"
    noun = "token"
    head = ("layers", "channel", "largest", "times the median token's")
    joined = True

    def order(self, row: Row) -> float:
        return -float(row["median_ratio"])

    def cells(self, row: Row) -> Cells:
        return large_token(row, "median")
