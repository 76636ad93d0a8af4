"""The first screen of the report: five findings with their definitions, and alarms.

The functions depend on the tables only: equal tables give equal sentences.
"""

from __future__ import annotations

from collections.abc import Sequence

from outlier_atlas.criteria.show import Evidence, Finding, Row
from outlier_atlas.criteria.shows import ALL
from outlier_atlas.report import mechanisms, not_finite

MOST = 5
"""Sentences of the first screen."""

ABLATION_RANK = 30
"""The rank of the sentence on ablation among equally striking ones (`Show.rank`)."""


def findings(evidence: Evidence, ablations: Sequence[Row], text: bool) -> list[Finding]:
    """Return five sentences, the most striking first.

    Args:
        ablations: rows of the table `ablations`; none without the ablation stage.
        text: name tokens by their text; otherwise by their id.
    """
    ranked = [
        (ABLATION_RANK, mechanisms.taken_away(ablations)),
        *((show.rank, show.findings(evidence, text)) for show in ALL),
    ]
    ranked.sort(key=lambda one: one[0])
    sentences = [finding for _, each in ranked for finding in each]
    return sorted(sentences, key=lambda finding: -finding.striking)[:MOST]


def alarms(evidence: Evidence, dtype: str) -> list[str]:
    """Return what must come before any finding: sentences on NaN and infinite values.

    Args:
        dtype: that the model ran in.
    """
    return not_finite.alarms((each for show in ALL for each in show.finiteness(evidence)), dtype)
