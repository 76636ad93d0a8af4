"""Central moments in float64, merged by the formulas of Chan et al. and of Pebay (2008).

The functions accept numpy arrays and torch tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from outlier_atlas.statistics.codes import Float64

Powers = tuple[Any, Any, Any, Any, Any]
"""Number, mean, and sums of the second to fourth powers of the deviations from the mean."""


def merged(a: Powers, b: Powers) -> Powers:
    """Return the moments of the union of two sets of values, element by element.

    Formulas: Pebay 2008, SAND2008-6212, (2.1) and (3.1) for p = 3 and 4.
    """
    n_a, mean_a, m2_a, m3_a, m4_a = a
    n_b, mean_b, m2_b, m3_b, m4_b = b
    n = n_a + n_b
    some = n + (n == 0)  # so that the moments of two empty sets are 0
    d = mean_b - mean_a
    part = d / some
    both = n_a * n_b
    m2 = m2_a + m2_b + d * part * both
    m3 = m3_a + m3_b + d * part * part * both * (n_a - n_b)
    m3 = m3 + 3 * part * (n_a * m2_b - n_b * m2_a)
    m4 = m4_a + m4_b + d * part * part * part * both * (n_a * n_a - both + n_b * n_b)
    m4 = m4 + 6 * part * part * (n_a * n_a * m2_b + n_b * n_b * m2_a)
    m4 = m4 + 4 * part * (n_a * m3_b - n_b * m3_a)
    return n, mean_a + part * n_b, m2, m3, m4


@dataclass
class Moments:
    """An accumulator of the moments of each element along an axis.

    Attributes:
        powers: the moments, float64 arrays of equal shape.
    """

    powers: Powers

    @classmethod
    def none(cls, size: int) -> Moments:
        """Return the moments of `size` elements without any values."""
        n, mean, m2, m3, m4 = np.zeros((5, size))
        return cls((n, mean, m2, m3, m4))

    def update(self, powers: Powers) -> None:
        """Add the moments of more values."""
        self.powers = merged(self.powers, powers)

    def merge(self, other: Moments) -> None:
        """Add another accumulator."""
        self.update(other.powers)

    @property
    def kurtosis(self) -> Float64:
        """Kurtosis mu4 / sigma^4 of each element (Gaussian = 3); NaN if its values are equal."""
        n, _, m2, _, m4 = self.powers
        with np.errstate(divide="ignore", invalid="ignore"):
            kurtosis: Float64 = n * m4 / (m2 * m2)
        return kurtosis

    @property
    def mean_square(self) -> Float64:
        """Mean of x^2 of each element; NaN without values."""
        n, mean, m2, _, _ = self.powers
        with np.errstate(divide="ignore", invalid="ignore"):
            square: Float64 = m2 / n + mean * mean
        return square


def together(each: Sequence[Moments]) -> Moments:
    """Return the moments over all elements of each accumulator, one element for each accumulator.

    Args:
        each: the accumulators; at least one, and all of the same size.
    """
    n, mean, m2, m3, m4 = (np.stack(power) for power in zip(*(m.powers for m in each), strict=True))
    powers: Powers = n, mean, m2, m3, m4
    # Pairwise merging: the error grows only with the depth of the tree.
    while (size := powers[0].shape[1]) > 1:
        even = size // 2 * 2
        pairs = merged(_every_second(powers, 0, even), _every_second(powers, 1, even))
        powers = _joined(pairs, _every_second(powers, even, None))
    n, mean, m2, m3, m4 = (power[:, 0] for power in powers)
    return Moments((n, mean, m2, m3, m4))


def _every_second(powers: Powers, first: int, stop: int | None) -> Powers:
    n, mean, m2, m3, m4 = (power[:, first:stop:2] for power in powers)
    return n, mean, m2, m3, m4


def _joined(a: Powers, b: Powers) -> Powers:
    n, mean, m2, m3, m4 = (np.concatenate(pair, axis=1) for pair in zip(a, b, strict=True))
    return n, mean, m2, m3, m4
