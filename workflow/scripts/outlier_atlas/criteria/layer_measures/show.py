"""Report section on kurtosis and on errors of quantization."""

from __future__ import annotations

from outlier_atlas.criteria.layer_measures.tables import DESCRIPTION
from outlier_atlas.criteria.magnitudes.show import sites
from outlier_atlas.criteria.quantization_error import show as quantization_error
from outlier_atlas.criteria.show import (
    Page,
    ReportSection,
    Row,
    Show,
)


class LayerMeasuresShow(Show):
    """The section with the figures of kurtosis and of quantization errors."""

    description = DESCRIPTION
    title = "Kurtosis"

    def section(self, page: Page) -> ReportSection:
        measured = sites(page)
        quantized = quantization_error.pictures(page)
        values = {
            "sites": measured,
            "kurtosis": [_kurtosis(page, site["name"]) for site in measured],
            "quantization": quantized,
            "quantization_threshold": page.configuration["detection"]["quantization_error"][
                "threshold"
            ],
        }
        label = f"Kurtosis{' and quantization error' if quantized else ''}"
        return ReportSection("measures", label, "layer_measures/section.html.j2", values)


def _kurtosis(page: Page, site: str) -> Row:
    return page.picture(
        f"{site}-kurtosis",
        f"Kurtosis at {site}, by layer, in four variants",
        f"{site}: kurtosis (not excess) by layer. Logarithmic axis.",
    )
