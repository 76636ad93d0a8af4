"""Sentences on what stands behind outliers: super weights, super experts, attention sinks, and what
taking them away does. Each gives none where nothing was found or measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import dropwhile, takewhile
from typing import Any

from outlier_atlas.report import ablation, sinks
from outlier_atlas.report.finding import Finding
from outlier_atlas.report.text import count, number

Row = dict[str, Any]


def super_weights(rows: Sequence[Row], definition: str) -> list[Finding]:
    """The super weight with the largest output; `rows` of super_weights."""
    found = [row for row in rows if row["super_weight"]]
    if not found:
        return []
    top = max(found, key=lambda row: abs(row["output"]))
    weight = "" if top["weight"] is None else f" = {number(top['weight'])}"
    expert = "" if top["expert"] is None else f" of expert {top['expert']}"
    text = (
        f"The down projection{expert} of layer {top['layer']} has a super weight, "
        f"W[{top['row']}, {top['column']}]{weight}: at one token its input is "
        f"{number(top['input'])} in channel {top['column']}, and it makes "
        f"{number(100 * top['share'])} % of the output of {number(top['output'])} in channel "
        f"{top['row']}."
    )
    others = f" The run has {len(found):,} super weights in all." if len(found) > 1 else ""
    return [Finding(text + others, definition, 4)]


def super_experts(rows: Sequence[Row], definition: str) -> list[Finding]:
    """The super expert with the largest output; `rows` of super_experts."""
    if not rows:
        return []
    top = max(rows, key=lambda row: abs(row["value"]))
    text = (
        f"The run has {count(len(rows), 'super expert')}: the output of expert {top['expert']} of "
        f"layer {top['layer']} reaches {number(top['value'])} in channel {top['channel']}."
    )
    return [Finding(text, definition, 4)]


def attention_sinks(
    layers: Sequence[Row], positions: Sequence[Row], definition: str
) -> list[Finding]:
    """How often the first token is a sink; rows of attention_sinks and attention_sink_positions."""
    if not layers or not positions[0]["sink_metric"]:
        return []
    return [Finding(sinks.said(layers, positions), definition, 3)]


def taken_away(rows: Sequence[Row]) -> list[Finding]:
    """What raises the perplexity most, beside its random draws; `rows` of ablations.

    What may be chance over sequences comes behind all that is more. Of so few sequences that this
    cannot be told, what raises it by more than its random draws comes in between.
    """
    altered = [at for at, row in enumerate(rows) if at and row["draw"] is None]
    if not altered:
        return []
    # What a later search found is altered with all that was found before it, and has no draws.
    altered = [
        at
        for at in altered
        if not math.isnan(rows[at]["ratio"]) and rows[at]["target"] != "later_super_weight"
    ]
    if not altered:
        text = (
            "What is taken away cannot be judged: the perplexity of the held-out tokens is NaN, of "
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
