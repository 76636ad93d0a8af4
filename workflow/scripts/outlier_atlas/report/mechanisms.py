"""The sentence on what ablation does; none where nothing was ablated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import dropwhile, takewhile
from typing import Any

from outlier_atlas.criteria.show import Finding
from outlier_atlas.report import ablation

Row = dict[str, Any]


def taken_away(rows: Sequence[Row]) -> list[Finding]:
    """What raises the perplexity most, with its random draws; `rows` of ablations.

    What may be chance over sequences comes behind all that is more. Of so few sequences that this
    cannot be told, what raises it by more than its random draws comes in between.
    """
    altered = [at for at, row in enumerate(rows) if at and row["draw"] is None]
    if not altered:
        return []
    # What a later search found is altered with all that was found before it, and has no draws.
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
    # A target's random draws stand behind all that was done to it.
    target = rows[most]["target"]
    own = takewhile(lambda row: row["target"] == target, rows[most + 1 :])
    behind = dropwhile(lambda row: row["draw"] is None, own)
    drawn = takewhile(lambda row: row["draw"] is not None, behind)
    random = [row["ratio"] for row in drawn if not math.isnan(row["ratio"])]
    text, definition = ablation.sentence(rows[0], rows[most], random)
    stands_out = _above_1(rows[most]) and rows[most]["ratio"] > max([1.0, *random])
    sure = ablation.more_than_chance(rows[most])
    return [Finding(text, definition, (4 if sure else 3) if stands_out else 1)]


def _above_1(row: Row) -> bool:
    """Whether its interval over sequences, where it has one, is above 1."""
    return row["ratio_low"] is None or bool(row["ratio_low"] > 1)
