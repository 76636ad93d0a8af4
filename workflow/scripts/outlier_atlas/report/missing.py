"""List of criteria, measures and stages that a run does not have, with reasons."""

from __future__ import annotations

from outlier_atlas.criteria.show import Page, Row
from outlier_atlas.criteria.shows import ALL, TITLES
from outlier_atlas.text import listed


def missing(page: Page) -> list[tuple[str, str]]:
    """Return the names of unmeasured criteria, measures and stages, with reasons."""
    configuration, criteria = page.configuration, page.evidence.criteria
    switched = (
        ("Ablation", configuration["ablation"]["sequences"], "ablation.sequences is 0"),
        ("Weights", configuration["weights"]["measure"], "weights.measure is false"),
    )
    return [
        *((TITLES[name], _sites(row)) for name, row in criteria.items() if not row["measured"]),
        *((show.title, why) for show in ALL if (why := show.switched_off(page))),
        *((name, why) for name, on, why in switched if not on),
    ]


def _sites(criterion: Row) -> str:
    sites, absent = criterion["sites"].split(), criterion["missing_sites"].split()
    is_are = "is" if len(absent) == 1 else "are"
    return (
        f"defined on {listed(sites)}; {listed(absent)} {is_are} not among the sites of this run "
        f"(extraction.sites)"
    )
