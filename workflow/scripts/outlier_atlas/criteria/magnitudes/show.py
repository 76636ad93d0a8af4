"""Report section and findings on magnitudes of activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from outlier_atlas.criteria.magnitudes import comparison
from outlier_atlas.criteria.magnitudes.tables import DESCRIPTION, LAYER_MAGNITUDES
from outlier_atlas.criteria.show import (
    ComparedPart,
    Evidence,
    Finding,
    Finiteness,
    Page,
    ReportSection,
    Row,
    Show,
)
from outlier_atlas.report.compared_runs import Both
from outlier_atlas.settings.sites import SITE_NAMES
from outlier_atlas.text import (
    count,
    listed,
    number,
)


class MagnitudesShow(Show):
    """The first section of the report: each site with its figures."""

    description = DESCRIPTION
    title = "Magnitudes"

    def findings(self, evidence: Evidence, text: bool) -> list[Finding]:
        return [largest(evidence.rows(LAYER_MAGNITUDES))]

    def section(self, page: Page) -> ReportSection:
        tokens = page.tokens
        values = {
            "sites": sites(page),
            "tokens_said": f"{count(len(tokens.token_ids), 'token')} in "
            f"{count(tokens.sequences, 'sequence')}",
        }
        return ReportSection("sites", "Sites", "magnitudes/section.html.j2", values)

    def finiteness(self, evidence: Evidence) -> Iterator[Finiteness]:
        for row in evidence.rows(LAYER_MAGNITUDES):
            some = row["top1"] is not None
            yield Finiteness(row["site"], row["layer"], row["nan"], row["infinite"], some)

    def compared_part(self, both: Both) -> ComparedPart:
        values = {"sites": comparison.sites(both)}
        return ComparedPart("magnitudes/comparison.html.j2", values)


def sites(page: Page) -> list[Row]:
    """Return each site with its figures; the site with the largest |x| is unfolded.

    If several sites have the same largest |x|, the last of them is unfolded.
    """
    tops = largest_by_site(page.evidence.rows(LAYER_MAGNITUDES))
    unfolded = max(reversed(tops), key=lambda site: tops[site]["top1"] or 0, default=None)
    return [_site(site, top, page) | {"open": site == unfolded} for site, top in tops.items()]


def _site(site: str, top: Row, page: Page) -> Row:
    return {
        "name": site,
        "meaning": SITE_NAMES[site],
        "top": top,
        "magnitudes": page.picture(
            f"{site}-magnitudes",
            f"Largest three and median of |x| at {site}, by layer",
            "The three largest |x| of each layer, over all tokens and channels, and the median of "
            "|x|, the lower of the two middle values (exact for bfloat16). Logarithmic axis.",
        ),
        "maxima": page.picture(
            f"{site}-maxima",
            f"Largest |x| at {site}, by layer and channel",
            "The largest |x| of each channel in each layer, over all tokens; logarithmic colour. "
            "The channels with the largest maxima are named above.",
        ),
    }


def largest_by_site(rows: Sequence[Row]) -> dict[str, Row]:
    """Return the row of `layer_magnitudes` with the largest |x| of each site."""
    tops: dict[str, Row] = {}
    for row in rows:
        top = tops.setdefault(row["site"], row)["top1"]
        if row["top1"] is not None and (top is None or row["top1"] > top):
            tops[row["site"]] = row
    return tops


def largest(rows: Sequence[Row]) -> Finding:
    """Return a finding on the largest |x| of each site.

    Args:
        rows: rows of the table `layer_magnitudes`.
    """
    if not rows:
        return Finding("No site with channels was measured.", "", 0)
    finite = "finite " if any(r["nan"] or r["infinite"] for r in rows) else ""
    maxima = [
        f"{number(top['top1'])} at {site} (layer {top['layer']}, channel {top['channel']})"
        for site, top in largest_by_site(rows).items()
        if top["top1"] is not None
    ]
    if not maxima:
        return Finding("No value of any site with channels is finite.", "", 1)
    return Finding(
        f"The largest {finite}|x| is {listed(maxima)}.",
        "top1 of layer_magnitudes: the largest |x| over all finite values of a site.",
        1,
    )
