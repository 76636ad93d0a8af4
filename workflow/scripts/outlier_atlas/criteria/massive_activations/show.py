"""Report section and findings on massive activations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from outlier_atlas.criteria.finding_table import joined
from outlier_atlas.criteria.magnitudes.tables import LAYER_MAGNITUDES
from outlier_atlas.criteria.massive_activations import comparison
from outlier_atlas.criteria.massive_activations.tables import (
    DESCRIPTION,
    MASSIVE_ACTIVATIONS,
    MASSIVE_CHANNELS,
)
from outlier_atlas.criteria.show import (
    ComparedPart,
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
    place,
)
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.report.compared_runs import Both
from outlier_atlas.settings.report import ReportSettings
from outlier_atlas.text import (
    bracketed,
    channels,
    count,
    layers,
    number,
    percent,
    quoted,
    ranges,
    shown,
)


class MassiveActivationsShow(Show):
    """The section on massive activations by channel, and by place with the surrounding text."""

    description = DESCRIPTION
    title = "Massive activations"
    rank = 50
    ablated = {
        "massive_activations": "massive activations",
        "massive_channel": "channel of massive activations",
    }

    def findings(self, evidence: Evidence, text: bool) -> list[Finding]:
        return _findings(evidence, self.criterion(evidence), text)

    def section(self, page: Page) -> ReportSection:
        criterion = self.criterion(page.evidence)
        values = _values(page, criterion)
        template = "massive_activations/section.html.j2"
        return ReportSection("massive", self.title, template, values, shown=criterion["measured"])

    def compared_part(self, both: Both) -> ComparedPart:
        template = "massive_activations/comparison.html.j2"
        return ComparedPart(template, comparison.values(both))


def _findings(evidence: Evidence, criterion: Row, text: bool) -> list[Finding]:
    if not criterion["measured"]:
        return not_measured(criterion, "massive activations")
    definition, site = criterion["definition"], criterion["sites"]
    if nothing_finite(criterion):
        return nothing_known(criterion, "massive activations")
    massive = evidence.rows(MASSIVE_CHANNELS)
    if not massive:
        return _none(evidence, criterion)
    by_channel: dict[int, list[Row]] = defaultdict(list)
    for row in massive:
        by_channel[row["channel"]].append(row)
    # Order by number of massive layers, then by largest value.
    ordered = sorted(
        by_channel.items(), key=lambda item: (-len(item[1]), -max(abs(r["value"]) for r in item[1]))
    )
    channel, rows = ordered[0]
    top = max(rows, key=lambda row: abs(row["value"]))
    token = quoted(top["token_text"]) if text else f"id {top['token_id']}"
    first = (
        f"Channel {channel} of the {place(site)} is massive in "
        f"{layers(row['layer'] for row in rows)}: it reaches "
        f"{number(top['value'])}{bracketed(top, 'value', number)} in layer "
        f"{top['layer']}, at position {top['position']} of sequence {top['sequence']} (token "
        f"{token}), {number(top['tensor_median_ratio'])} times the median of "
        f"|x| in that sequence and layer.{left_out(criterion)}"
    )
    total = sum(row["massive_activations"] for row in massive)
    at_first = sum(r["massive_activations"] * r["first_position_share"] for r in massive)
    second = (
        f"The run has {count(total, 'massive activation')} in all, in "
        f"{channels(c for c, _ in ordered)}; {percent(at_first / total)} of them at the first "
        f"position of a sequence, and those of channel {channel} in "
        f"{sequences_of(evidence)[channel]:,} of {count(evidence.sequences, 'sequence')}."
    )
    return [Finding(first, definition, 5), Finding(second, definition, 3)]


def _none(evidence: Evidence, criterion: Row) -> list[Finding]:
    text = (
        f"No value of the {place(criterion['sites'])} is a massive activation.{left_out(criterion)}"
    )
    return [Finding(text, criterion["definition"], 2), closest(evidence, criterion)]


def closest(evidence: Evidence, criterion: Row) -> Finding:
    """Return a finding on the values of the site that are closest to massive activations."""
    site = criterion["sites"]
    rows = [
        row
        for row in evidence.rows(LAYER_MAGNITUDES)
        if row["site"] == site and row["top1"] is not None
    ]
    definition = "top1 and median of layer_magnitudes: over all sequences of the layer together."
    if not rows:
        return Finding(f"All values of the {place(site)} are NaN or infinite.", definition, 1)
    top, ratio = max(rows, key=lambda row: row["top1"]), max(rows, key=_ratio)
    return Finding(
        f"The closest: |x| reaches {number(top['top1'])} (layer {top['layer']}, channel "
        f"{top['channel']}), and {number(_ratio(ratio))} times its layer's median (layer "
        f"{ratio['layer']}, channel {ratio['channel']}).",
        definition,
        1,
    )


def _ratio(row: Row) -> float:
    return float(row["top1"] / row["median"]) if row["median"] else float("inf")


def sequences_of(evidence: Evidence) -> dict[int, int]:
    """Return the number of sequences in which each channel is massive in any layer."""
    of_channel: dict[int, set[int]] = defaultdict(set)
    for row in evidence.rows(MASSIVE_ACTIVATIONS):
        of_channel[row["channel"]].add(row["sequence"])
    return {channel: len(sequences) for channel, sequences in of_channel.items()}


def _values(page: Page, criterion: Row) -> Row:
    report, evidence, tokens = page.report, page.evidence, page.tokens
    sequences = sequences_of(evidence)
    by_channel: dict[int, list[Row]] = defaultdict(list)
    for row in evidence.rows(MASSIVE_CHANNELS):
        by_channel[row["channel"]].append(row)
    channels = sorted(
        (
            _channel(rows) | {"sequences": sequences[channel]}
            for channel, rows in by_channel.items()
        ),
        key=lambda r: (-abs(r["value"]), r["channel"]),
    )
    places = sorted(
        joined(evidence.rows(MASSIVE_ACTIVATIONS)),
        key=lambda row: (-abs(row["value"]), row["token_index"], row["channel"]),
    )
    in_text = [row | _context(report, tokens, row["token_index"]) for row in places[: report.rows]]
    return {
        "criterion": criterion,
        "channels": channels[: report.rows],
        "channels_shown": shown(len(channels), report.rows, "channel"),
        "places": in_text,
        "places_shown": shown(len(places), report.rows, "place"),
        "sequences": tokens.sequences,
        "closest": closest(evidence, criterion).text if criterion["measured"] else "",
    }


def _channel(rows: Sequence[Row]) -> Row:
    """Return a row on the massive activations of a channel over all of its layers."""
    top = max(rows, key=lambda row: abs(row["value"]))
    total = sum(row["massive_activations"] for row in rows)
    first = sum(row["massive_activations"] * row["first_position_share"] for row in rows)
    return top | {
        "layers": ranges(row["layer"] for row in rows),
        "massive_activations": total,
        "first_position_share": first / total,
    }


def _context(report: ReportSettings, tokens: TokenStore, index: int) -> Row:
    if report.text != "full":
        return {"before": "", "text": "", "after": ""}
    around = report.context_tokens
    before, text, after = tokens.window(index, around, around)
    return {"before": before, "text": text, "after": after}
