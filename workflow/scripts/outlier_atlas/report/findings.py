"""The findings of a run in five plain sentences, each with its definition.

Pure functions from tables to sentences: equal tables give equal sentences.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from outlier_atlas import tables
from outlier_atlas.criteria.attention_sinks.tables import ATTENTION_SINK_POSITIONS, ATTENTION_SINKS
from outlier_atlas.criteria.experts.tables import EXPERT_MAGNITUDES
from outlier_atlas.criteria.llm_int8.tables import LLM_INT8_FEATURES, LLM_INT8_VARIANTS
from outlier_atlas.criteria.magnitudes.tables import LAYER_MAGNITUDES
from outlier_atlas.criteria.massive_activations.tables import MASSIVE_ACTIVATIONS, MASSIVE_CHANNELS
from outlier_atlas.criteria.super_experts.tables import SUPER_EXPERTS
from outlier_atlas.criteria.super_weights.tables import SUPER_WEIGHTS
from outlier_atlas.criteria.tables import CRITERIA
from outlier_atlas.report import mechanisms, not_finite
from outlier_atlas.report.finding import Finding
from outlier_atlas.report.text import (
    bracketed,
    channels,
    count,
    layers,
    listed,
    number,
    percent,
    quoted,
    spanned,
)
from outlier_atlas.settings.sites import ATTN_SINK, EXPERT_OUT, SITE_NAMES

Row = dict[str, Any]
MOST = 5
"""Sentences of the first screen."""


@dataclass(frozen=True)
class Evidence:
    """The tables that the sentences are made from, as rows."""

    criteria: Mapping[str, Row]
    magnitudes: list[Row]
    features: list[Row]
    variants: list[Row]
    massive: list[Row]
    sequences_of: Mapping[int, int]
    super_weights: list[Row]
    super_experts: list[Row]
    ablations: list[Row]
    experts: list[Row]
    sinks: list[Row]
    sink_positions: list[Row]
    sequences: int

    @classmethod
    def read(cls, folder: Path, sequences: int, ablations: bool) -> Evidence:
        """Read the tables of a run; `ablations`: whether it has that of the ablation stage."""

        def rows(table: tables.Table) -> list[Row]:
            return tables.read(folder, table).to_pylist()

        return cls(
            criteria={row["criterion"]: row for row in rows(CRITERIA)},
            magnitudes=rows(LAYER_MAGNITUDES),
            features=rows(LLM_INT8_FEATURES),
            variants=rows(LLM_INT8_VARIANTS),
            massive=rows(MASSIVE_CHANNELS),
            super_weights=rows(SUPER_WEIGHTS),
            super_experts=rows(SUPER_EXPERTS),
            ablations=rows(tables.ABLATIONS) if ablations else [],
            experts=rows(EXPERT_MAGNITUDES),
            sinks=rows(ATTENTION_SINKS),
            sink_positions=rows(ATTENTION_SINK_POSITIONS),
            sequences_of=_sequences_of(tables.read(folder, MASSIVE_ACTIVATIONS)),
            sequences=sequences,
        )


def _sequences_of(massive: pa.Table) -> dict[int, int]:
    """Of each channel the number of sequences in which it is massive, in whichever layers."""
    counted = massive.group_by("channel").aggregate([("sequence", "count_distinct")]).to_pylist()
    return {row["channel"]: row["sequence_count_distinct"] for row in counted}


def findings(evidence: Evidence, text: bool) -> list[Finding]:
    """Five sentences, the most striking first.

    Args:
        text: whether tokens are named by their text; by their id otherwise.
    """
    sentences = [
        *_mechanisms(evidence),
        *_massive(evidence, text),
        *_llm_int8(evidence),
        _largest(evidence),
    ]
    return sorted(sentences, key=lambda finding: -finding.striking)[:MOST]


def _mechanisms(evidence: Evidence) -> list[Finding]:
    def of(criterion: str, made: Callable[..., list[Finding]], *rows: list[Row]) -> list[Finding]:
        row = evidence.criteria[criterion]
        left_out = not_finite.left_out(row) if row["measured"] else ""
        return [
            replace(finding, text=f"{finding.text}{left_out}")
            for finding in made(*rows, str(row["definition"]))
        ]

    return [
        *of("super_weights", mechanisms.super_weights, evidence.super_weights),
        *of("super_experts", mechanisms.super_experts, evidence.super_experts),
        *mechanisms.taken_away(evidence.ablations),
        *of("attention_sinks", mechanisms.attention_sinks, evidence.sinks, evidence.sink_positions),
    ]


def alarms(evidence: Evidence, dtype: str) -> list[str]:
    """What must come before any finding: values that are NaN or infinite.

    Args:
        dtype: that the model ran in.
    """
    of_sites = (
        *((row["site"], row, "top1") for row in evidence.magnitudes),
        *((EXPERT_OUT, row, "value") for row in evidence.experts),
        *((ATTN_SINK, row | {"infinite": 0}, "value") for row in evidence.sinks),
    )
    by_site: dict[str, list[Row]] = defaultdict(list)
    for site, row, largest in of_sites:
        by_site[site].append(row | {"some": row[largest] is not None})
    return not_finite.alarms(by_site, dtype)


def _not_measured(criterion: Row, name: str) -> list[Finding]:
    missing = listed(criterion["missing_sites"].split())
    sites = listed(criterion["sites"].split())
    return [
        Finding(f"{name} were not measured: {missing} is not among the run's sites.", "", 0),
        Finding(f"Nothing is known here about {name}; they are defined on {sites}.", "", 0),
    ]


def _nothing_finite(criterion: Row, name: str) -> list[Finding]:
    sites = listed(criterion["sites"].split())
    text = f"Nothing is known of {name}: in no layer is a value of {sites} finite."
    return [Finding(text, criterion["definition"], 2)]


def _massive(evidence: Evidence, text: bool) -> list[Finding]:
    criterion = evidence.criteria["massive_activations"]
    if not criterion["measured"]:
        return _not_measured(criterion, "massive activations")
    definition, site = criterion["definition"], criterion["sites"]
    if not_finite.nothing_finite(criterion):
        return _nothing_finite(criterion, "massive activations")
    if not evidence.massive:
        return _no_massive(evidence, site, definition)
    by_channel: dict[int, list[Row]] = defaultdict(list)
    for row in evidence.massive:
        by_channel[row["channel"]].append(row)
    # The channel that is massive in most layers; of equals the one with the largest value.
    ordered = sorted(
        by_channel.items(), key=lambda item: (-len(item[1]), -max(abs(r["value"]) for r in item[1]))
    )
    channel, rows = ordered[0]
    top = max(rows, key=lambda row: abs(row["value"]))
    token = quoted(top["token_text"]) if text else f"id {top['token_id']}"
    first = (
        f"Channel {channel} of the {_place(site)} is massive in "
        f"{layers(row['layer'] for row in rows)}: it reaches "
        f"{number(top['value'])}{bracketed(top, 'value', number)} in layer "
        f"{top['layer']}, at position {top['position']} of sequence {top['sequence']} (token "
        f"{token}), {number(top['tensor_median_ratio'])} times the median of "
        f"|x| in that sequence and layer.{not_finite.left_out(criterion)}"
    )
    total = sum(row["massive_activations"] for row in evidence.massive)
    at_first = sum(r["massive_activations"] * r["first_position_share"] for r in evidence.massive)
    second = (
        f"The run has {count(total, 'massive activation')} in all, in "
        f"{channels(c for c, _ in ordered)}; {percent(at_first / total)} of them at the first "
        f"position of a sequence, and those of channel {channel} in "
        f"{evidence.sequences_of[channel]:,} of {count(evidence.sequences, 'sequence')}."
    )
    return [Finding(first, definition, 5), Finding(second, definition, 3)]


def _no_massive(evidence: Evidence, site: str, definition: str) -> list[Finding]:
    left_out = not_finite.left_out(evidence.criteria["massive_activations"])
    text = f"No value of the {_place(site)} is a massive activation.{left_out}"
    return [Finding(text, definition, 2), closest_to_massive(evidence)]


def closest_to_massive(evidence: Evidence) -> Finding:
    """How near the site of massive activations comes to them."""
    site = evidence.criteria["massive_activations"]["sites"]
    rows = [row for row in evidence.magnitudes if row["site"] == site and row["top1"] is not None]
    definition = "top1 and median of layer_magnitudes: over all sequences of the layer together."
    if not rows:
        return Finding(f"All values of the {_place(site)} are NaN or infinite.", definition, 1)
    top, ratio = max(rows, key=lambda row: row["top1"]), max(rows, key=_ratio)
    return Finding(
        f"The closest: |x| reaches {number(top['top1'])} (layer {top['layer']}, channel "
        f"{top['channel']}), and {number(_ratio(ratio))} times its layer's median (layer "
        f"{ratio['layer']}, channel {ratio['channel']}).",
        definition,
        1,
    )


def _place(site: str) -> str:
    """A site as a sentence names it."""
    name = "residual stream" if site.startswith("resid_") else SITE_NAMES[site]
    return f"{name} ({site})"


def _ratio(row: Row) -> float:
    return float(row["top1"] / row["median"]) if row["median"] else float("inf")


def _llm_int8(evidence: Evidence) -> list[Finding]:
    criterion = evidence.criteria["llm_int8"]
    if not criterion["measured"]:
        return _not_measured(criterion, "LLM.int8() outlier features")
    if not_finite.nothing_finite(criterion):
        return _nothing_finite(criterion, "LLM.int8() outlier features")
    definition = criterion["definition"]
    found = [row for row in evidence.features if row["outlier_feature"]]
    sites = listed(criterion["sites"].split())
    if found:
        top = found[0]
        has = (
            f"has outliers in {count(top['layers'], 'layer')} and at "
            f"{spanned(top, 'position_share_union', percent)} of the positions, {_sides(top)}"
        )
        if len(found) == 1:
            first = (
                f"Channel {top['channel']} is the only LLM.int8() outlier feature of {sites}: it "
                f"{has}."
            )
        else:
            first = (
                f"{len(found):,} channels of {sites} are LLM.int8() outlier features "
                f"({channels(row['channel'] for row in found)}); channel {top['channel']} {has}."
            )
    elif evidence.features:
        near = evidence.features[0]
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
    first += not_finite.left_out(criterion)
    return [Finding(first, definition, 4 if found else 2), _readings(evidence, definition)]


def _sides(row: Row) -> str:
    if row["sidedness"] == "two-sided":
        return f"two-sided ({percent(row['positive_share'])} of them positive)"
    sign = "positive" if row["positive_share"] else "negative"
    return (
        f"one-sided (all {sign}; quartiles {number(row['quartile1'])}, {number(row['median'])} and "
        f"{number(row['quartile3'])})"
    )


def _readings(evidence: Evidence, definition: str) -> Finding:
    """The paper leaves both shares open: what the other readings would give."""
    counts = sorted({row["outlier_features"] for row in evidence.variants})
    readings = (
        f"{len(evidence.variants)} readings of LLM.int8()'s two shares (of layers or tensors; of "
        f"positions by union, mean or maximum)"
    )
    if counts == [0]:
        text = f"None of the {readings} gives an outlier feature."
    elif len({row["channels"] for row in evidence.variants}) == 1:
        text = f"All {readings} give the same {count(counts[0], 'outlier feature')}."
    elif len(counts) == 1:
        text = f"The {readings} each give {count(counts[0], 'outlier feature')}, not the same ones."
    else:
        text = f"The {readings} give {counts[0]:,} to {counts[-1]:,} outlier features."
    return Finding(text, definition, 1)


def largest_by_site(evidence: Evidence) -> dict[str, Row]:
    """Of each site the row of layer_magnitudes with the largest |x|."""
    tops: dict[str, Row] = {}
    for row in evidence.magnitudes:
        top = tops.setdefault(row["site"], row)["top1"]
        if row["top1"] is not None and (top is None or row["top1"] > top):
            tops[row["site"]] = row
    return tops


def _largest(evidence: Evidence) -> Finding:
    if not evidence.magnitudes:
        return Finding("No site with channels was measured.", "", 0)
    finite = "finite " if any(r["nan"] or r["infinite"] for r in evidence.magnitudes) else ""
    said = [
        f"{number(top['top1'])} at {site} (layer {top['layer']}, channel {top['channel']})"
        for site, top in largest_by_site(evidence).items()
        if top["top1"] is not None
    ]
    if not said:
        return Finding("No value of any site with channels is finite.", "", 1)
    return Finding(
        f"The largest {finite}|x| is {listed(said)}.",
        "top1 of layer_magnitudes: the largest |x| over all finite values of a site.",
        1,
    )
