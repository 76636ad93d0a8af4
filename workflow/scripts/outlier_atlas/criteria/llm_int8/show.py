"""Report section and findings on outlier features of LLM.int8()."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from outlier_atlas.criteria.llm_int8.settings import LayerShare, PositionShare
from outlier_atlas.criteria.llm_int8.tables import DESCRIPTION, LLM_INT8_FEATURES, LLM_INT8_VARIANTS
from outlier_atlas.criteria.show import (
    Evidence,
    Finding,
    Page,
    ReportSection,
    Row,
    Show,
    left_out,
    not_measured,
    nothing_finite,
    nothing_known,
)
from outlier_atlas.text import (
    channels,
    count,
    listed,
    number,
    percent,
    shown,
    spanned,
)


class LlmInt8Show(Show):
    """The section on outlier features by channel, with every reading of the two shares."""

    description = DESCRIPTION
    title = "LLM.int8() outlier features"
    rank = 60
    ablated = {"outlier_features": "LLM.int8() outlier features"}

    def findings(self, evidence: Evidence, text: bool) -> list[Finding]:
        return _findings(evidence, self.criterion(evidence))

    def section(self, page: Page) -> ReportSection:
        rows, most = page.evidence.rows(LLM_INT8_FEATURES), page.report.rows
        criterion = self.criterion(page.evidence)
        values = {
            "criterion": criterion,
            "rows": rows[:most],
            "shown": shown(len(rows), most, "channel"),
            "over": get_args(LayerShare),
            "by": get_args(PositionShare),
            "variants": {
                (row["layer_share_over"], row["position_share_by"]): row
                for row in page.evidence.rows(LLM_INT8_VARIANTS)
            },
        }
        template = "llm_int8/section.html.j2"
        return ReportSection(
            "llm-int8", "LLM.int8()", template, values, shown=criterion["measured"]
        )


def _findings(evidence: Evidence, criterion: Row) -> list[Finding]:
    if not criterion["measured"]:
        return not_measured(criterion, "LLM.int8() outlier features")
    if nothing_finite(criterion):
        return nothing_known(criterion, "LLM.int8() outlier features")
    definition = criterion["definition"]
    features = evidence.rows(LLM_INT8_FEATURES)
    passing = [row for row in features if row["outlier_feature"]]
    sites = listed(criterion["sites"].split())
    if passing:
        top = passing[0]
        has = (
            f"has outliers in {count(top['layers'], 'layer')} and at "
            f"{spanned(top, 'position_share_union', percent)} of the positions, {_sides(top)}"
        )
        if len(passing) == 1:
            first = (
                f"Channel {top['channel']} is the only LLM.int8() outlier feature of {sites}: it "
                f"{has}."
            )
        else:
            first = (
                f"{len(passing):,} channels of {sites} are LLM.int8() outlier features "
                f"({channels(row['channel'] for row in passing)}); channel {top['channel']} {has}."
            )
    elif features:
        near = features[0]
        first = (
            f"No channel of {sites} is an outlier feature by the LLM.int8() criterion; the "
            f"closest, channel {near['channel']}, has outliers in {count(near['layers'], 'layer')} "
            f"and at {spanned(near, 'position_share_union', percent)} of the positions."
        )
    else:
        first = (
            f"No channel of {sites} is an outlier feature by the LLM.int8() criterion: no value "
            f"reaches the threshold."
        )
    first += left_out(criterion)
    return [
        Finding(first, definition, 4 if passing else 2),
        _readings(evidence.rows(LLM_INT8_VARIANTS), definition),
    ]


def _sides(row: Row) -> str:
    if row["sidedness"] == "two-sided":
        return f"two-sided ({percent(row['positive_share'])} of them positive)"
    sign = "positive" if row["positive_share"] else "negative"
    return (
        f"one-sided (all {sign}; quartiles {number(row['quartile1'])}, {number(row['median'])} and "
        f"{number(row['quartile3'])})"
    )


def _readings(variants: Sequence[Row], definition: str) -> Finding:
    """Return a finding on all readings of the shares, which the paper does not define in full."""
    counts = sorted({row["outlier_features"] for row in variants})
    readings = (
        f"{len(variants)} readings of LLM.int8()'s two shares (of layers or tensors; of "
        f"positions by union, mean or maximum)"
    )
    if counts == [0]:
        text = f"None of the {readings} gives an outlier feature."
    elif len({row["channels"] for row in variants}) == 1:
        text = f"All {readings} give the same {count(counts[0], 'outlier feature')}."
    elif len(counts) == 1:
        text = f"The {readings} each give {count(counts[0], 'outlier feature')}, not the same ones."
    else:
        text = f"The {readings} give {counts[0]:,} to {counts[-1]:,} outlier features."
    return Finding(text, definition, 1)
