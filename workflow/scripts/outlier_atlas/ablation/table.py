"""The table of the ablation stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.ablation.variants import UNALTERED, Trial


def columns(
    trials: Sequence[Trial],
    losses: Mapping[str, NDArray[np.float32]],
    sequence_starts: NDArray[np.int64],
) -> dict[str, Any]:
    """The columns of `ablations`, a row for each trial.

    Args:
        losses: of each variant, by its key: (token,).
        sequence_starts: (sequences + 1,), of the held-out tokens.
    """
    predicted = np.ones(int(sequence_starts[-1]), bool)
    predicted[sequence_starts[:-1]] = False
    mean = {key: float(np.mean(of[predicted], dtype=np.float64)) for key, of in losses.items()}
    own = [mean[trial.variant.key] for trial in trials]
    return {
        "target": [t.target for t in trials],
        "site": [" ".join(t.sites) or None for t in trials],
        "first_layer": [t.layers[0] if t.layers else None for t in trials],
        "last_layer": [t.layers[1] if t.layers else None for t in trials],
        "channels": [" ".join(map(str, t.channels)) or None for t in trials],
        "expert": [t.expert for t in trials],
        "row": [t.row for t in trials],
        "column": [t.column for t in trials],
        "intervention": [t.intervention for t in trials],
        "draw": [t.draw for t in trials],
        "tokens": [int(predicted.sum())] * len(trials),
        "loss": own,
        "perplexity": [_exp(loss) for loss in own],
        "ratio": [_exp(loss - mean[UNALTERED.key]) for loss in own],
    }


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
