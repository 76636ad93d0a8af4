"""Section of the report on the ablation of outliers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from outlier_atlas.criteria.shows import ALL
from outlier_atlas.tables.losses import ENOUGH_SEQUENCES
from outlier_atlas.text import (
    bracketed,
    channels,
    count,
    interval,
    layers,
    listed,
    number,
    times,
)

Row = dict[str, Any]

DEFINITION = (
    "Perplexity (exp of the mean negative log-likelihood, each token given all before it in its "
    "own sequence) of held-out tokens: the sequences of the dataset after the run's own. A weight "
    "is ablated by setting it to 0; a channel, by setting the site's value there to 0, or to its "
    "mean over all of the run's tokens in that layer, for all tokens; an expert, by setting its "
    "output to 0. Massive activations are ablated as in Sun et al. 2024 (arXiv 2402.17762): the "
    "values of the held-out sequences that fulfil the criterion, and no others (also of tokens "
    "that detection.exclude leaves out), are set to 0 or to the mean of the run's own massive "
    "activations of that channel and layer (at the first "
    "position and at others), all channels together, each in the first layer in which it is "
    "massive. Random: as many other channels, as many other values at the same tokens, another "
    "weight of the same matrix, or another expert of the layer, set to 0; all draws are different."
)

INTERVALS = (
    "Small type under numbers: bootstrap intervals over the held-out sequences "
    "(detection.bootstrap). Those of “times the model's own” are paired, each draw the same "
    "sequences of both"
)

CHANCE = ": where one does not hold 1, the effect is more than chance over sequences."


def few(sequences: int) -> str:
    """Return a sentence on intervals over too few sequences, or "" with enough sequences."""
    if sequences >= ENOUGH_SEQUENCES:
        return ""
    return (
        f"{count(sequences, 'sequence')}: too few to tell an effect from chance; "
        f"from {ENOUGH_SEQUENCES} on (ablation.sequences) intervals are wide enough"
    )


WHAT = {
    "weight": "weight",
    "expert_weight": "expert's weight",
    "channel": "configured channel",
    **{name: words for show in ALL for name, words in show.ablated.items()},
}
"""Names of all targets in sentences: targets of the configuration and of the criteria."""


def section(rows: Sequence[Row]) -> Row:
    """Return the values of the section, with a row for each intervention.

    The random draws of a target share one row.

    Args:
        rows: rows of the table `ablations`; the unaltered model comes first.
    """
    unaltered, *altered = rows
    shown: list[Row] = []
    for _, trials in groupby(altered, key=_is_random):
        group = list(trials)
        shown += [_random(group)] if _is_random(group[0]) else [_trial(row) for row in group]
    return {
        "definition": DEFINITION,
        "tokens": count(unaltered["tokens"], "token"),
        "perplexity": number(unaltered["perplexity"]) + bracketed(unaltered, "perplexity", number),
        "rows": shown,
        "intervals": "" if unaltered["perplexity_low"] is None else _intervals(unaltered),
    }


def _intervals(unaltered: Row) -> str:
    why = few(unaltered["sequences"])
    return f"{INTERVALS}. Over {why}." if why else f"{INTERVALS}{CHANCE}"


def more_than_chance(row: Row) -> bool:
    """Return whether a rise of the perplexity is more than chance over sequences.

    The interval of its ratio must be above 1 and must be over enough sequences.
    """
    low = row["ratio_low"]
    return low is not None and low > 1 and row["sequences"] >= ENOUGH_SEQUENCES


def sentence(unaltered: Row, altered: Row, random: Sequence[float]) -> tuple[str, str]:
    """Return a sentence on the effect of one intervention, and its definition.

    Args:
        unaltered: row of the unaltered model in the table `ablations`.
        altered: row of the intervention in the table `ablations`.
        random: ratios of the random draws of the target.
    """
    text = (
        f"Without the {WHAT[altered['target']]} ({_where(altered)}, set to "
        f"{altered['intervention']}) the perplexity of held-out tokens is "
        f"{number(altered['perplexity'])}, {times(altered['ratio'])}"
        f"{bracketed(altered, 'ratio', times)} times the model's own "
        f"{number(unaltered['perplexity'])}"
    )
    if random:
        text += f"; {count(len(random), 'random draw')}: {_from_to(random, times)} times"
    why = few(altered["sequences"])
    return f"{text}.{f' Over {why}.' if why else ''}", DEFINITION


def _is_random(row: Row) -> bool:
    return row["draw"] is not None


def _trial(row: Row) -> Row:
    return {
        "what": WHAT[row["target"]],
        "where": _where(row),
        "how": row["intervention"],
        "perplexity": number(row["perplexity"]),
        "perplexity_ends": interval(row, "perplexity", number),
        "ratio": times(row["ratio"]),
        "ratio_ends": interval(row, "ratio", times),
    }


def _random(draws: Sequence[Row]) -> Row:
    """Return the row of the random draws of one target, from the lowest to the highest number."""
    return {
        "what": "",
        "where": f"{count(len(draws), 'random draw')} of as many",
        "how": "zero",
        "perplexity": _from_to([draw["perplexity"] for draw in draws], number),
        "perplexity_ends": _outermost(draws, "perplexity", number),
        "ratio": _from_to([draw["ratio"] for draw in draws], times),
        "ratio_ends": _outermost(draws, "ratio", times),
    }


def _from_to(numbers: Sequence[float], form: Callable[[float], str]) -> str:
    first, last = form(min(numbers)), form(max(numbers))
    return first if first == last else f"{first} to {last}"


def _outermost(draws: Sequence[Row], name: str, form: Callable[[float], str]) -> str:
    """Return the lowest and the highest end of the intervals of several draws, or ""."""
    ends = [draw[f"{name}_{end}"] for draw in draws for end in ("low", "high")]
    known = [end for end in ends if end is not None]
    return f"{form(min(known))} to {form(max(known))}" if known else ""


def _where(row: Row) -> str:
    span = layers(range(row["first_layer"], row["last_layer"] + 1))
    if row["row"] is not None:
        expert = "" if row["expert"] is None else f" of expert {row['expert']}"
        return f"row {row['row']}, column {row['column']} of the down projection{expert}, {span}"
    if row["expert"] is not None:
        return f"expert {row['expert']}, {span}"
    if row["channels"] is None:
        return f"down projections, {span}"
    named = channels(map(int, row["channels"].split()))
    return f"{named} of {listed(row['site'].split())}, {span}"
