"""The tables of massive activations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.detection.columns import (
    Columns,
    interval_columns,
    located,
    ratio,
    sequences_and_positions,
    token_columns,
)
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.codes import Int64
from outlier_atlas.statistics.massive import MassiveActivation

Massive = tuple[int, MassiveActivation]
"""A layer and a massive activation in it."""


def massive_activation_columns(
    massive: Sequence[Massive], site: str, tokens: TokenStore
) -> Columns:
    """The table of massive activations."""
    indices = [activation.token for _, activation in massive]
    return {
        "site": [site] * len(massive),
        "layer": [layer for layer, _ in massive],
        "channel": [activation.channel for _, activation in massive],
        **located(tokens, indices),
        "value": [activation.value for _, activation in massive],
        "tensor_median": [activation.tensor_median for _, activation in massive],
        "tensor_median_ratio": [ratio(a.value, a.tensor_median) for _, a in massive],
        "token_median": [activation.token_median for _, activation in massive],
        "token_median_ratio": [ratio(a.value, a.token_median) for _, a in massive],
    }


def massive_channel_columns(
    massive: Sequence[Massive], site: str, tokens: TokenStore, bootstrap: Bootstrap
) -> Columns:
    """The table of them by layer and channel."""
    ordered = sorted(massive, key=lambda m: (m[0], m[1].channel, m[1].token))
    groups = [
        (place, [activation for _, activation in members])
        for place, members in groupby(ordered, key=lambda m: (m[0], m[1].channel))
    ]
    largest = [max(members, key=lambda a: abs(a.value)) for _, members in groups]
    of_members = [
        sequences_and_positions(tokens, [a.token for a in members]) for _, members in groups
    ]
    of_largest = [a.token for a in largest]
    sequence, position = sequences_and_positions(tokens, of_largest)
    return {
        "site": [site] * len(groups),
        "layer": [layer for (layer, _), _ in groups],
        "channel": [channel for (_, channel), _ in groups],
        "massive_activations": [len(members) for _, members in groups],
        "sequences": [len(np.unique(sequences)) for sequences, _ in of_members],
        "first_position_share": [(positions == 0).mean() for _, positions in of_members],
        "value": [a.value for a in largest],
        "tensor_median_ratio": [ratio(a.value, a.tensor_median) for a in largest],
        "sequence": sequence,
        "position": position,
        **token_columns(tokens, of_largest),
        **_intervals([members for _, members in groups], of_members, bootstrap),
    }


def _intervals(
    groups: Sequence[Sequence[MassiveActivation]],
    of_members: Sequence[tuple[Int64, Int64]],
    bootstrap: Bootstrap,
) -> Columns:
    shares, maxima = [], []
    for members, (sequences, positions) in zip(groups, of_members, strict=True):
        number, first = np.zeros((2, bootstrap.sequences), np.int64)
        largest = np.full(bootstrap.sequences, np.nan)
        np.add.at(number, sequences, 1)
        np.add.at(first, sequences, positions == 0)
        np.fmax.at(largest, sequences, [abs(activation.value) for activation in members])
        shares.append(bootstrap.ratios(first, number))
        maxima.append(bootstrap.maxima(largest))
    return interval_columns("first_position_share", shares) | interval_columns("value", maxima)
