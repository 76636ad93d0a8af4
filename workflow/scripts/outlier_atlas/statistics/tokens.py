"""Tokens that are outliers as a whole, because their largest value stands out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from outlier_atlas.statistics.sequences import WholeSequence


@dataclass(frozen=True, order=True)
class TokenOutlier:
    """A token of a site and layer whose largest value stands out.

    Attributes:
        token: index along the token axis.
        channel: of the largest value.
        value: largest in |x|, with its sign.
        reference: what it stands out from.
    """

    token: int
    channel: int
    value: float
    reference: float


def above(sequence: WholeSequence, ratio: float, reference: float) -> Iterator[TokenOutlier]:
    """Tokens whose largest |x| > `ratio` times a reference; compared in float64."""
    values = sequence.token_values
    with np.errstate(invalid="ignore"):  # NaN where a token has no finite value
        above = np.flatnonzero(np.abs(values.astype(np.float64)) > ratio * reference)
    for row in above.tolist():
        yield TokenOutlier(
            int(sequence.tokens[row]),
            int(sequence.token_channels[row]),
            float(values[row]),
            reference,
        )
