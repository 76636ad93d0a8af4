"""Report section and findings on attention sinks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from outlier_atlas.criteria.attention_sinks.tables import (
    ATTENTION_SINK_POSITIONS,
    ATTENTION_SINKS,
    DESCRIPTION,
)
from outlier_atlas.criteria.show import (
    ComparedNumber,
    ComparedPart,
    Evidence,
    Finding,
    Finiteness,
    Page,
    ReportSection,
    Row,
    Show,
    with_left_out,
)
from outlier_atlas.report.compared_runs import NOT_MEASURED, Both
from outlier_atlas.settings.sites import ATTN_SINK
from outlier_atlas.text import (
    count,
    percentage,
    shown,
    spanned,
)


def _first_position(rows: Sequence[Row]) -> Row | None:
    return rows[0] if rows else None


class AttentionSinksShow(Show):
    """The section on attention sinks by head, by layer and by position."""

    description = DESCRIPTION
    title = "Attention sinks"
    rank = 40
    compared_numbers = (
        ComparedNumber(
            "sink metric of the first token",
            ATTENTION_SINK_POSITIONS,
            "sink_metric",
            percentage,
            _first_position,
        ),
    )

    def findings(self, evidence: Evidence, text: bool) -> list[Finding]:
        criterion = self.criterion(evidence)
        layers, positions = _rows(evidence)
        return with_left_out(sentence(layers, positions, criterion["definition"]), criterion)

    def section(self, page: Page) -> ReportSection:
        criterion = self.criterion(page.evidence)
        values = _values(criterion, *_rows(page.evidence), page.report.rows)
        if criterion["measured"]:
            values["heatmap"] = page.picture(
                f"{ATTN_SINK}-heads",
                "Attention that the first token receives, by layer and head",
                "The attention that the first token of a sequence receives in each head, as a mean "
                "over the sequences; colour from 0 to 1.",
            )
        template = "attention_sinks/section.html.j2"
        return ReportSection("sinks", self.title, template, values, shown=criterion["measured"])

    def finiteness(self, evidence: Evidence) -> Iterator[Finiteness]:
        # An attention weight is NaN or a number between 0 and 1.
        for row in evidence.rows(ATTENTION_SINKS):
            yield Finiteness(ATTN_SINK, row["layer"], row["nan"], 0, row["value"] is not None)

    def compared_part(self, both: Both) -> ComparedPart:
        template = "attention_sinks/comparison.html.j2"
        return ComparedPart(template, {"sinks": _compared_layers(both)})


def _compared_layers(both: Both) -> list[Row]:
    """Return the sink metric of each layer in both runs."""
    here, there = ({row["layer"]: row for row in side.rows(ATTENTION_SINKS)} for side in both)
    return [
        {
            "layer": layer,
            "sides": [
                spanned(side[layer], "sink_metric", percentage) if layer in side else NOT_MEASURED
                for side in (here, there)
            ],
        }
        for layer in sorted({*here, *there})
    ]


def _rows(evidence: Evidence) -> tuple[list[Row], list[Row]]:
    """Return the rows of the tables by layer and by position."""
    return evidence.rows(ATTENTION_SINKS), evidence.rows(ATTENTION_SINK_POSITIONS)


def sentence(layers: Sequence[Row], positions: Sequence[Row], definition: str) -> list[Finding]:
    """Return a finding on the share of sinks at the first token; none if the token is never a sink.

    Args:
        layers: rows of the table `attention_sinks`.
        positions: rows of the table `attention_sink_positions`.
        definition: definition of the criterion.
    """
    if not layers or not positions[0]["sink_metric"]:
        return []
    return [Finding(metric_sentence(layers, positions), definition, 3)]


def _values(criterion: Row, layers: Sequence[Row], positions: Sequence[Row], most: int) -> Row:
    by_metric = sorted(positions, key=lambda row: (-(row["sink_metric"] or 0), row["position"]))
    return {
        "criterion": criterion,
        "said": metric_sentence(layers, positions) if layers else "",
        "layers": layers[:most],
        "layers_shown": shown(len(layers), most, "layer"),
        "positions": by_metric[: min(most, 5)],
    }


def metric_sentence(layers: Sequence[Row], positions: Sequence[Row]) -> str:
    """Return a sentence on the share of sinks at the first token."""
    metric = positions[0]["sink_metric"]
    if metric is None:
        return "No number of this run is finite."
    layers = [row for row in layers if row["sink_metric"] is not None]
    heads = sum(row["heads"] for row in layers)
    sinking = sum(row["sink_heads"] for row in layers)
    share = spanned(positions[0], "sink_metric", percentage)
    return (
        f"The first token is a sink in {share} of all (sequence, layer, head), and on average over "
        f"the sequences in {sinking:,} of {count(heads, 'head')}."
    )
