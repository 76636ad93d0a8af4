"""The findings of a run in five plain sentences, each with its definition.

Pure functions from tables to sentences: equal tables give equal sentences.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from outlier_atlas.criteria.attention_sinks.tables import ATTENTION_SINKS
from outlier_atlas.criteria.experts.tables import EXPERT_MAGNITUDES
from outlier_atlas.criteria.magnitudes.tables import LAYER_MAGNITUDES
from outlier_atlas.criteria.show import Evidence, Finding, Row
from outlier_atlas.criteria.shows import BEHIND, SHOWS
from outlier_atlas.report import mechanisms, not_finite
from outlier_atlas.settings.sites import ATTN_SINK, EXPERT_OUT

MOST = 5
"""Sentences of the first screen."""

ABLATION_RANK = 30
"""The rank of the sentence on ablation among equally striking ones (`Show.rank`)."""


def findings(evidence: Evidence, ablations: Sequence[Row], text: bool) -> list[Finding]:
    """Five sentences, the most striking first.

    Args:
        ablations: rows of the table `ablations`; none without the ablation stage.
        text: whether tokens are named by their text; by their id otherwise.
    """
    ranked = [
        (ABLATION_RANK, mechanisms.taken_away(ablations)),
        *((show.rank, show.findings(evidence, text)) for show in (*SHOWS, *BEHIND)),
    ]
    ranked.sort(key=lambda one: one[0])
    sentences = [finding for _, each in ranked for finding in each]
    return sorted(sentences, key=lambda finding: -finding.striking)[:MOST]


def alarms(evidence: Evidence, dtype: str) -> list[str]:
    """What must come before any finding: values that are NaN or infinite.

    Args:
        dtype: that the model ran in.
    """
    of_sites = (
        *((row["site"], row, "top1") for row in evidence.rows(LAYER_MAGNITUDES)),
        *((EXPERT_OUT, row, "value") for row in evidence.rows(EXPERT_MAGNITUDES)),
        *((ATTN_SINK, row | {"infinite": 0}, "value") for row in evidence.rows(ATTENTION_SINKS)),
    )
    by_site: dict[str, list[Row]] = defaultdict(list)
    for site, row, largest in of_sites:
        by_site[site].append(row | {"some": row[largest] is not None})
    return not_finite.alarms(by_site, dtype)
