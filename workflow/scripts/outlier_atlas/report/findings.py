"""First screen of the report: five findings with their definitions, and alarms.

The functions depend only on the tables, so equal tables give equal sentences.
"""

from __future__ import annotations

from collections.abc import Sequence

from outlier_atlas.criteria.show import Evidence, Finding, Row
from outlier_atlas.criteria.shows import ALL
from outlier_atlas.report import mechanisms, not_finite

MOST = 5
"""Maximum number of sentences on the first screen."""

ABLATION_RANK = 30
"""Rank of the sentence on ablation among equally striking sentences (see `Show.rank`)."""


def findings(evidence: Evidence, ablations: Sequence[Row], text: bool) -> list[Finding]:
    """Return up to five sentences, the most striking first.

    Args:
        evidence: the tables of the run.
        ablations: rows of the table `ablations`; empty without an ablation stage.
        text: whether tokens are named by text; otherwise they are named by id.
    """
    ranked = [
        (ABLATION_RANK, mechanisms.ablation_findings(ablations)),
        *((show.rank, show.findings(evidence, text)) for show in ALL),
    ]
    ranked.sort(key=lambda ranked_findings: ranked_findings[0])
    sentences = [finding for _, each in ranked for finding in each]
    return sorted(sentences, key=lambda finding: -finding.striking)[:MOST]


def alarms(evidence: Evidence, dtype: str) -> list[str]:
    """Return alarms on NaN and infinite values, which precede the findings.

    Args:
        evidence: the tables of the run.
        dtype: dtype of the forward pass.
    """
    return not_finite.alarms((each for show in ALL for each in show.finiteness(evidence)), dtype)
