"""SmoothQuant (Xiao et al. 2023, arXiv 2211.10438): scales that move outliers into the weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def smoothquant_scales(
    activations: NDArray[np.float32], weights: NDArray[np.float32], alpha: float
) -> NDArray[np.float64]:
    """The scale of each input channel, s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (equation 4).

    Args:
        activations, weights: the largest |x| and |w| of each channel; (channel,).
        alpha: how much of the outliers is moved into the weights.

    Returns:
        (channel,); NaN where one of the two is zero or not a number: nothing is to be moved.
    """
    known = (activations > 0) & (weights > 0)
    x, w = (np.where(known, values, 1).astype(np.float64) for values in (activations, weights))
    return np.where(known, x**alpha / w ** (1 - alpha), np.nan)
