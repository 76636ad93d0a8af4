"""The report's section on what follows if an outlier is taken away."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from outlier_atlas.report.text import channels, count, layers, listed, number

Row = dict[str, Any]

DEFINITION = (
    "Perplexity (exp of the mean negative log-likelihood, each token given all before it in its "
    "own sequence) of held-out tokens: the sequences of the dataset after the run's own. A weight "
    "is taken away by setting it to 0; a channel, by setting the site's value there to 0, or to "
    "its mean over all of the run's tokens in that layer, for all tokens. Random: as many other "
    "channels, or another weight of the same matrix, set to 0."
)

WHAT = {
    "super_weight": "super weight",
    "outlier_features": "LLM.int8() outlier features",
    "massive_channel": "massive activations",
    "weight": "weight",
    "expert_weight": "expert's weight",
    "channel": "configured channel",
}


def section(rows: Sequence[Row]) -> Row:
    """What the section shows: a row for each intervention, random draws together.

    Args:
        rows: of `ablations`; the model as it is comes first.
    """
    unaltered, *altered = rows
    shown: list[Row] = []
    for _, trials in groupby(altered, key=_is_random):
        group = list(trials)
        shown += [_random(group)] if _is_random(group[0]) else [_one(row) for row in group]
    return {
        "definition": DEFINITION,
        "tokens": count(unaltered["tokens"], "token"),
        "perplexity": number(unaltered["perplexity"]),
        "rows": shown,
    }


def sentence(unaltered: Row, altered: Row, random: Sequence[float]) -> tuple[str, str]:
    """What one intervention does, in words, and the definition.

    Args:
        unaltered, altered: rows of `ablations`.
        random: ratios of the random draws beside it.
    """
    text = (
        f"Without the {WHAT[altered['target']]} ({_where(altered)}, set to "
        f"{altered['intervention']}) the perplexity of held-out tokens is "
        f"{number(altered['perplexity'])}, {number(altered['ratio'])} times the model's own "
        f"{number(unaltered['perplexity'])}"
    )
    if random:
        text += f"; {count(len(random), 'random draw')}: {_from_to(sorted(random))} times"
    return f"{text}.", DEFINITION


def _is_random(row: Row) -> bool:
    return row["draw"] is not None


def _one(row: Row) -> Row:
    return {
        "what": WHAT[row["target"]],
        "where": _where(row),
        "how": row["intervention"],
        "perplexity": number(row["perplexity"]),
        "ratio": number(row["ratio"]),
    }


def _random(draws: Sequence[Row]) -> Row:
    """The draws of one target, from the least ratio to the largest."""
    ratios = sorted(draw["ratio"] for draw in draws)
    perplexities = sorted(draw["perplexity"] for draw in draws)
    return {
        "what": "",
        "where": f"{count(len(draws), 'random draw')} of as many",
        "how": "zero",
        "perplexity": _from_to(perplexities),
        "ratio": _from_to(ratios),
    }


def _from_to(ascending: Sequence[float]) -> str:
    first, last = number(ascending[0]), number(ascending[-1])
    return first if first == last else f"{first} to {last}"


def _where(row: Row) -> str:
    span = layers(range(row["first_layer"], row["last_layer"] + 1))
    if row["row"] is not None:
        expert = "" if row["expert"] is None else f" of expert {row['expert']}"
        return f"row {row['row']}, column {row['column']} of the down projection{expert}, {span}"
    named = channels(map(int, row["channels"].split()))
    return f"{named} of {listed(row['site'].split())}, {span}"
