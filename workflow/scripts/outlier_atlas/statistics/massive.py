"""Massive activations (Sun et al. 2024, arXiv 2402.17762).

A value is massive where |x| > `absolute` and |x| >= `ratio` times the median of |x|. The paper's
median is over all tokens and channels of the sequence in that layer (`tensor`); the one over the
token's own channels (`token`) is offered under its own name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from outlier_atlas.statistics.sequences import ValuesOf, WholeSequence


@dataclass(frozen=True, order=True)
class MassiveActivation:
    """One massive activation of a site and layer, with both medians."""

    token: int
    channel: int
    value: float
    tensor_median: float
    token_median: float


def massive_activations(
    sequence: WholeSequence,
    absolute: float,
    ratio: float,
    median: Literal["tensor", "token"],
    values_of: ValuesOf | None = None,
) -> Iterator[MassiveActivation]:
    """The massive activations of a sequence; both medians are exact.

    Args:
        sequence: of one site and layer; its floor is at most `absolute`.
        absolute: a massive activation has |x| > this, compared in float32 ...
        ratio: ... and |x| >= this many times the median, compared in float64.
        median: which median.
        values_of: reads the values of a tile; None where they are not stored.
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
