"""Tokens that are outliers as a whole: systematic outliers and token outliers."""

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


def systematic_outliers(sequence: WholeSequence, ratio: float) -> Iterator[TokenOutlier]:
    """Tokens whose largest |x| > `ratio` times the mean of |x| over the sequence (An et al. 2025).

    Compared in float64.
    """
    return _above(sequence, ratio, sequence.mean)


def token_outliers(sequence: WholeSequence, ratio: float) -> Iterator[TokenOutlier]:
    """Tokens whose largest |x| > `ratio` times the median over the sequence's tokens of their
    largest |x| (PrefixQuant, Chen et al. 2024, arXiv 2410.05265).

    The median is the lower of the two middle ones. Compared in float64.
    """
    largest = np.sort(np.abs(sequence.token_values[sequence.token_channels >= 0]))
    median = float(largest[(len(largest) - 1) // 2]) if len(largest) else float("nan")
    return _above(sequence, ratio, median)


def _above(sequence: WholeSequence, ratio: float, reference: float) -> Iterator[TokenOutlier]:
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
