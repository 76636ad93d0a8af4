"""The report's section that compares another run with this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from outlier_atlas.criteria.shows import TITLES
from outlier_atlas.report.compared_runs import (
    Both,
    Side,
    of_model,
    refuse_missing,
    refuse_other_shape,
)
from outlier_atlas.report.facts import start
from outlier_atlas.sanitize import visible
from outlier_atlas.settings.sites import SITE_NAMES
from outlier_atlas.text import (
    count,
    layers,
    number,
    percent,
    percentage,
    spanned,
)

Row = dict[str, Any]

NONE = "not measured"


def section(here: Path, there: Path) -> Row:
    """What the section shows.

    Args:
        here, there: folders of this run and of the other.

    Raises:
        ValueError: the other run is not there, or of a model of another shape, or a record is
            damaged.
    """
    refuse_missing(there)
    both = Side.read(here), Side.read(there)
    refuse_other_shape(*both)
    moved = _channels(both)
    return {
        "name": visible(there.name),
        "of_model": of_model(*both),
        "rows": [*_facts(both), *_numbers(both)],
        "said": _said(moved, there.name) if _measured(both, "massive_activations") else "",
        "channels": moved,
        "sites": _sites(both),
        "sinks": _sinks(both),
    }


def _facts(both: Both) -> list[Row]:
    """How the two runs were made, so far as their records say it."""
    shown: tuple[tuple[str, Callable[[Side], str]], ...] = (
        ("model", lambda s: visible(s.model)),
        (
            "begin-of-sequence token",
            lambda s: start(s.tokens),
        ),
        ("text", lambda s: visible(str(s.tokens["source"]))),
        (
            "tokens",
            lambda s: f"{s.tokens['tokens']:,} in {count(s.tokens['sequences'], 'sequence')}",
        ),
        ("dtype", lambda s: visible(str(s.store["dtype"]))),
        ("tokens left out", lambda s: s.left_out or "none"),
    )
    return [{"what": name, "sides": [of(side) for side in both]} for name, of in shown]


def _numbers(both: Both) -> list[Row]:
    rows = [
        {"what": "perplexity of its own tokens", "sides": [_perplexity(side) for side in both]},
        {"what": "sink metric of the first token", "sides": [_sink_metric(side) for side in both]},
    ]
    for name, title in TITLES.items():
        sides = [_findings(side, name) for side in both]
        if sides != [NONE, NONE]:
            alike = len({side.criterion(name)["definition"] for side in both}) == 1
            what = f"{title}: findings" if alike else f"{title}: findings, otherwise defined there"
            rows.append({"what": what, "sides": sides})
    return rows


def _perplexity(side: Side) -> str:
    whole = [row for row in side.rows["perplexity"] if row["sequence"] is None]
    return spanned(whole[0], "perplexity", number) if whole else NONE


def _sink_metric(side: Side) -> str:
    first = side.rows["attention_sink_positions"][:1]
    return spanned(first[0], "sink_metric", percentage) if first else NONE


def _findings(side: Side, criterion: str) -> str:
    row = side.criterion(criterion)
    return f"{row['findings']:,}" if row["measured"] else NONE


def _measured(both: Both, criterion: str) -> bool:
    return all(_findings(side, criterion) != NONE for side in both)


def _channels(both: Both) -> list[Row]:
    """The channels with massive activations in either run, those that differ first."""
    here, there = (_by_channel(side) for side in both)
    rows = [
        {"channel": channel, "change": change(here.get(channel), there.get(channel))}
        | {"sides": [_massive(side.get(channel)) for side in (here, there)]}
        for channel in sorted({*here, *there})
    ]
    return sorted(rows, key=lambda row: (row["change"] == "in both", row["channel"]))


def _by_channel(side: Side) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in side.rows["massive_channels"]:
        found.setdefault(row["channel"], []).append(row)
    return found


def change(here: Sequence[Row] | None, there: Sequence[Row] | None) -> str:
    """What becomes of a channel's massive activations, given its rows of `massive_channels`."""
    if not here or not there:
        return "only here" if here else "only there"
    common = {row["layer"] for row in here} & {row["layer"] for row in there}
    first = [_first_share(rows) > 0.5 for rows in (here, there)]
    return "in both" if common and first[0] == first[1] else "moves"


def _first_share(rows: Sequence[Row]) -> float:
    """The share of a channel's massive activations, of all layers, at the first position."""
    counts = [row["massive_activations"] for row in rows]
    at_first = sum(n * row["first_position_share"] for n, row in zip(counts, rows, strict=True))
    return float(at_first / sum(counts))


def _massive(rows: Sequence[Row] | None) -> Row | None:
    if not rows:
        return None
    largest = max(rows, key=lambda row: abs(row["value"]))
    return {
        "layers": layers(row["layer"] for row in rows),
        "largest": spanned(largest, "value", number),
        "layer": largest["layer"],
        "first": percent(_first_share(rows)),
    }


def _said(channels: Sequence[Row], name: str) -> str:
    changes = [row["change"] for row in channels]
    return (
        f"Channels with massive activations: {changes.count('in both')} in both runs, "
        f"{changes.count('moves')} that move, {changes.count('only here')} in this run alone, "
        f"{changes.count('only there')} in {visible(name)} alone."
    )


def _sites(both: Both) -> list[Row]:
    """Of each site the layers, and what is largest in each of the two runs."""
    here, there = (_by_place(side) for side in both)
    names = dict.fromkeys(site for site, _ in {**here, **there})
    largest = max(names, key=lambda site: _top(here, site), default=None)
    return [
        {
            "name": site,
            "meaning": SITE_NAMES[site],
            "open": site == largest,
            "layers": [
                _layer(layer, here.get((site, layer)), there.get((site, layer)))
                for layer in sorted({layer for at, layer in {**here, **there} if at == site})
            ],
        }
        for site in names
    ]


def _by_place(side: Side) -> dict[tuple[str, int], Row]:
    return {(row["site"], row["layer"]): row for row in side.rows["layer_magnitudes"]}


def _top(places: Mapping[tuple[str, int], Row], site: str) -> float:
    return max((row["top1"] or 0.0 for (at, _), row in places.items() if at == site), default=0.0)


def _layer(layer: int, *both: Row | None) -> Row:
    channels = [row["channel"] if row else None for row in both]
    tops = [row["top1"] if row else None for row in both]
    return {
        "layer": layer,
        "sides": [_largest(row) for row in both],
        "channels": ["" if channel is None else channel for channel in channels],
        "other": None not in channels and channels[0] != channels[1],
        "ratio": number(tops[1] / tops[0]) if tops[0] and tops[1] is not None else "",
    }


def _largest(row: Row | None) -> str:
    if row is None:
        return NONE
    return "nothing finite" if row["top1"] is None else spanned(row, "top1", number)


def _sinks(both: Both) -> list[Row]:
    here, there = ({row["layer"]: row for row in side.rows["attention_sinks"]} for side in both)
    return [
        {
            "layer": layer,
            "sides": [
                spanned(side[layer], "sink_metric", percentage) if layer in side else NONE
                for side in (here, there)
            ],
        }
        for layer in sorted({*here, *there})
    ]
