"""SmoothQuant scales (Xiao et al. 2023, arXiv 2211.10438), which move outliers into the weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def smoothquant_scales(
    activations: NDArray[np.float32], weights: NDArray[np.float32], alpha: float
) -> NDArray[np.float64]:
    """Return the scale of each input channel, s_j = max|X_j|^alpha / max|W_j|^(1 - alpha).

    This is equation 4 of the paper.

    Args:
        activations, weights: the largest |x| and |w| of each channel; (channel,).
        alpha: migration strength, how much of an outlier is moved into the weights.

    Returns:
        (channel,); NaN if one of the two maxima is zero or NaN, because nothing can be moved.
    """
    known = (activations > 0) & (weights > 0)
    x, w = (np.where(known, values, 1).astype(np.float64) for values in (activations, weights))
    return np.where(known, x**alpha / w ** (1 - alpha), np.nan)
