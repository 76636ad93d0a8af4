"""Tokens whose largest value is an outlier."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from outlier_atlas.statistics.sequences import WholeSequence


@dataclass(frozen=True, order=True)
class TokenOutlier:
    """A token of a site and layer whose largest value is an outlier.

    Attributes:
        token: index along the token axis.
        channel: channel of the largest value.
        value: the value largest in |x|, with its sign.
        reference: the number that |value| was compared with.
    """

    token: int
    channel: int
    value: float
    reference: float


def above(sequence: WholeSequence, ratio: float, reference: float) -> Iterator[TokenOutlier]:
    """Yield the tokens whose largest |x| exceeds `ratio` times a reference, compared in float64."""
    values = sequence.token_values
    with np.errstate(invalid="ignore"):  # tokens without a finite value have NaN
        rows = np.flatnonzero(np.abs(values.astype(np.float64)) > ratio * reference)
    for row in rows.tolist():
        yield TokenOutlier(
            int(sequence.tokens[row]),
            int(sequence.token_channels[row]),
            float(values[row]),
            reference,
        )
