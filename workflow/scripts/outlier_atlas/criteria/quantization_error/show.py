"""Figures of quantization errors, for the section on kurtosis."""

from __future__ import annotations

from outlier_atlas.criteria.quantization_error.tables import DESCRIPTION
from outlier_atlas.criteria.show import (
    Page,
    Row,
    Show,
)


class QuantizationErrorShow(Show):
    """The presentation of quantization errors; the section of `layer_measures` has the figures."""

    description = DESCRIPTION
    title = "Quantization error"

    def switched_off(self, page: Page) -> str:
        if page.configuration["detection"]["quantization_error"]["sites"]:
            return ""
        return "detection.quantization_error.sites names no site"


def pictures(page: Page) -> list[Row]:
    """Return a figure for each site in `detection.quantization_error.sites`."""
    return [
        page.picture(
            f"{site}-quantization",
            f"Signal to quantization noise at {site}, by layer and format",
            f"{site}: signal to quantization noise by layer, 10 log10(∑x² / ∑e²), in dB. Full: all "
            f"channels rounded. Dashed: outlier channels left as they are, with an error of 0; the "
            f"signal ∑x² is the same, of all channels.",
        )
        for site in page.configuration["detection"]["quantization_error"]["sites"]
    ]
