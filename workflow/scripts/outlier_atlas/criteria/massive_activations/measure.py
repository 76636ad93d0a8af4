"""Massive activations (Sun et al. 2024, arXiv 2402.17762).

A value is massive if |x| > `absolute` and |x| >= `ratio` times the median of |x|. The median of the
paper is over all tokens and channels of the sequence in that layer (`tensor`). The median over the
channels of the token (`token`) is an alternative.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Literal

import numpy as np

from outlier_atlas.criteria.columns import (
    Columns,
    interval_columns,
    located,
    ratio,
    sequences_and_positions,
    token_columns,
)
from outlier_atlas.criteria.massive_activations.tables import (
    DESCRIPTION,
    MASSIVE_ACTIVATIONS,
    MASSIVE_CHANNELS,
)
from outlier_atlas.criteria.sequence_criterion import SequenceCriterion
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.section import exactly
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.codes import Int64
from outlier_atlas.statistics.sequences import ValuesOf, WholeSequence
from outlier_atlas.tables.table import Table


class MassiveActivationsMeasure(SequenceCriterion["MassiveActivation"]):
    """Massive activations at one site."""

    description = DESCRIPTION

    @classmethod
    def sites(cls, settings: DetectionSettings, measured: Collection[str]) -> tuple[str, ...]:
        return (settings.massive_activations.site,)

    @classmethod
    def definition(cls, settings: DetectionSettings, sink_tokens: int) -> str:
        block = settings.massive_activations
        median = {
            "tensor": "over all tokens and channels of its sequence in that layer",
            "token": "over the channels of its token",
        }[block.median]
        return (
            f"A value of {block.site} is massive if |x| > {exactly(block.absolute)} and |x| >= "
            f"{exactly(block.ratio)} times the median of |x| {median}, finite values alone (Sun et "
            "al. 2024, arXiv 2402.17762)."
        )

    def decider(self, layer: int) -> Callable[[WholeSequence], Iterator[MassiveActivation]]:
        block = self.context.settings.massive_activations
        return partial(
            massive_activations, absolute=block.absolute, ratio=block.ratio, median=block.median,
            values_of=self.context.values_of(block.site, layer),
        )  # fmt: skip

    def tables(self) -> Iterator[tuple[Table, Columns]]:
        tokens = self.context.tokens
        yield MASSIVE_ACTIVATIONS, _values(self.results, self.site, tokens)
        yield MASSIVE_CHANNELS, _channels(self.results, self.site, tokens, self.context.bootstrap)


@dataclass(frozen=True, order=True)
class MassiveActivation:
    """A massive activation of a site and layer, with both medians."""

    token: int
    channel: int
    value: float
    tensor_median: float
    token_median: float


Massive = tuple[int, MassiveActivation]
"""A layer and a massive activation in it."""


def massive_activations(
    sequence: WholeSequence,
    absolute: float,
    ratio: float,
    median: Literal["tensor", "token"],
    values_of: ValuesOf | None = None,
) -> Iterator[MassiveActivation]:
    """Yield the massive activations of a sequence; both medians are exact.

    Args:
        sequence: the sequence of one site and layer; its floor is at most `absolute`.
        absolute: a massive activation has |x| > this, compared in float32.
        ratio: a massive activation has |x| >= this many times the median, compared in float64.
        median: the median that the criterion uses.
        values_of: a function that reads the values of a tile; None if they are not stored.
    """
    tokens, channels, values = sequence.high
    candidates = np.abs(values) > np.float32(absolute)
    if not candidates.any():
        return
    tokens, channels, values = tokens[candidates], channels[candidates], values[candidates]
    medians = sequence.token_medians[np.searchsorted(sequence.tokens, tokens)]
    whole = sequence.median(values_of)
    least = ratio * (whole if median == "tensor" else medians.astype(np.float64))
    massive = np.abs(values.astype(np.float64)) >= least
    columns = (tokens[massive], channels[massive], values[massive], medians[massive])
    for token, channel, value, own in zip(*(c.tolist() for c in columns), strict=True):
        yield MassiveActivation(token, channel, value, whole, own)


def _values(massive: Sequence[Massive], site: str, tokens: TokenStore) -> Columns:
    """Return the columns of the table of massive activations."""
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


def _channels(
    massive: Sequence[Massive], site: str, tokens: TokenStore, bootstrap: Bootstrap
) -> Columns:
    """Return the columns of the table of massive activations by layer and channel."""
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
