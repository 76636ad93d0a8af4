"""The report's figures of measures, with their captions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from outlier_atlas.settings.sites import SUPER_WEIGHT_SITES

Picture = Callable[[Path, str, str, str], Any]
"""Takes the folder, the name, the alternative text and the caption of a figure."""


def pictures(
    folder: Path, sites: Iterable[str], detection: Mapping[str, Any], picture: Picture
) -> dict[str, Any]:
    """Kurtosis of each site, and quantization errors of those that they were asked for."""
    asked = detection["quantization_error"]
    return {
        "kurtosis": [
            picture(
                folder,
                f"{site}-kurtosis",
                f"Kurtosis at {site}, by layer, in four variants",
                f"{site}: kurtosis (not excess) by layer. Logarithmic axis.",
            )
            for site in sites
        ],
        "quantization": [
            picture(
                folder,
                f"{site}-quantization",
                f"Signal to quantization noise at {site}, by layer and format",
                f"{site}: signal to quantization noise by layer, 10 log10(∑x² / ∑e²), in dB. "
                f"Full: all channels rounded. Dashed: outlier channels left as they are, with an "
                f"error of 0; the signal ∑x² is the same, of all channels.",
            )
            for site in asked["sites"]
        ],
        "quantization_threshold": asked["threshold"],
    }


def down_proj(folder: Path, picture: Picture) -> Any:
    """Maxima of the down projection."""
    return picture(
        folder,
        f"{SUPER_WEIGHT_SITES[1]}-down_proj",
        "Largest |output| of the down projection and |input| at its token, by layer",
        "The largest |output| of each layer's down projection over all tokens, and the largest "
        "|input| at the same token; super weights are named by [row, column]. Logarithmic axis.",
    )
