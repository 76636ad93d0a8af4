"""Finding on the effect of ablation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import dropwhile, takewhile
from typing import Any

from outlier_atlas.criteria.show import Finding
from outlier_atlas.report import ablation

Row = dict[str, Any]


def ablation_findings(rows: Sequence[Row]) -> list[Finding]:
    """Return a finding on the intervention that raises the perplexity most; none without any.

    Interventions whose effect may be chance over sequences come after all others. The finding is
    more striking if its effect exceeds that of the random draws, and most striking if the effect
    is also more than chance over sequences.

    Args:
        rows: rows of the table `ablations`.
    """
    altered = [at for at, row in enumerate(rows) if at and row["draw"] is None]
    if not altered:
        return []
    # Weights of a later search are ablated with all earlier ones, and have no random draws.
    altered = [
        at for at in altered if not math.isnan(rows[at]["ratio"]) and rows[at]["round"] is None
    ]
    if not altered:
        text = (
            "The ablation cannot be judged: the perplexity of the held-out tokens is NaN, of "
            "the model as it is or of all that was altered."
        )
        return [Finding(text, ablation.DEFINITION, 2)]
    most = max(altered, key=lambda at: (_above_1(rows[at]), rows[at]["ratio"]))
    # The rows of a target's random draws follow all of its other rows.
    target = rows[most]["target"]
    own = takewhile(lambda row: row["target"] == target, rows[most + 1 :])
    after_own = dropwhile(lambda row: row["draw"] is None, own)
    drawn = takewhile(lambda row: row["draw"] is not None, after_own)
    random = [row["ratio"] for row in drawn if not math.isnan(row["ratio"])]
    text, definition = ablation.sentence(rows[0], rows[most], random)
    stands_out = _above_1(rows[most]) and rows[most]["ratio"] > max([1.0, *random])
    sure = ablation.more_than_chance(rows[most])
    return [Finding(text, definition, (4 if sure else 3) if stands_out else 1)]


def _above_1(row: Row) -> bool:
    """Return whether the interval of the ratio is above 1; True without an interval."""
    return row["ratio_low"] is None or bool(row["ratio_low"] > 1)
