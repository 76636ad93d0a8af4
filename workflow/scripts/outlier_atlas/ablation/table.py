"""Table of the ablation stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.ablation.variants import UNALTERED, Trial
from outlier_atlas.criteria.columns import Columns, interval_columns
from outlier_atlas.statistics.bootstrap import Bootstrap, Interval
from outlier_atlas.statistics.losses import counts, predicted, sums


def columns(
    trials: Sequence[Trial],
    losses: Mapping[str, NDArray[np.float32]],
    sequence_starts: NDArray[np.int64],
    bootstrap: Bootstrap,
) -> Columns:
    """Return the columns of the table `ablations`, with a row for each trial.

    Args:
        trials: the trials; the unaltered model comes first.
        losses: losses of each variant by key, (token,).
        sequence_starts: index of the first token of each held-out sequence, and the number of
            tokens, (sequences + 1,).
        bootstrap: draws of the held-out sequences.
    """
    of = {key: predicted(losses_T, sequence_starts) for key, losses_T in losses.items()}
    mean = {key: float(np.mean(np.concatenate(each), dtype=np.float64)) for key, each in of.items()}
    own = [mean[trial.variant.key] for trial in trials]
    tokens = counts(of[UNALTERED.key])
    return {
        "target": [t.target for t in trials],
        "site": [" ".join(t.sites) or None for t in trials],
        "first_layer": [t.layers[0] if t.layers else None for t in trials],
        "last_layer": [t.layers[1] if t.layers else None for t in trials],
        "channels": [" ".join(map(str, t.channels)) or None for t in trials],
        "expert": [t.expert for t in trials],
        "row": [t.row for t in trials],
        "column": [t.column for t in trials],
        "round": [t.later.round if t.later else None for t in trials],
        "input": [t.later.input if t.later else None for t in trials],
        "output": [t.later.output if t.later else None for t in trials],
        "share": [t.later.share if t.later else None for t in trials],
        "intervention": [t.intervention for t in trials],
        "draw": [t.draw for t in trials],
        "tokens": [int(tokens.sum())] * len(trials),
        "sequences": [len(tokens)] * len(trials),
        "loss": own,
        "perplexity": [_exp(loss) for loss in own],
        "ratio": [_exp(loss - mean[UNALTERED.key]) for loss in own],
        **_intervals(trials, {key: sums(each) for key, each in of.items()}, tokens, bootstrap),
    }


def _intervals(
    trials: Sequence[Trial],
    losses: Mapping[str, NDArray[np.float64]],
    tokens: NDArray[np.int64],
    bootstrap: Bootstrap,
) -> Columns:
    """Return the columns of the intervals; intervals of ratios are paired.

    A draw contains the same sequences for the altered and the unaltered model. Therefore variation
    that both share (some text is harder than other text) does not widen the interval of the ratio.

    Args:
        trials: the trials.
        losses: sum of losses of each sequence, by key of the variant, (sequence,).
        tokens: number of predicted tokens of each sequence, (sequence,).
        bootstrap: draws of the held-out sequences.
    """
    with np.errstate(invalid="ignore"):  # the difference of two infinite losses is NaN
        more = {key: each - losses[UNALTERED.key] for key, each in losses.items()}
    own, differences = (
        {key: bootstrap.ratios(parts, tokens) for key, parts in of.items()} for of in (losses, more)
    )
    keys = [trial.variant.key for trial in trials]
    return {
        **interval_columns("loss", [own[key] for key in keys]),
        **interval_columns("perplexity", [_exp_of(own[key]) for key in keys]),
        **interval_columns("ratio", [_exp_of(differences[key]) for key in keys]),
    }


def _exp_of(interval: Interval) -> Interval:
    """Return exp of both ends of an interval, which is valid because exp is monotonic."""
    return interval and (_exp(interval[0]), _exp(interval[1]))


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
