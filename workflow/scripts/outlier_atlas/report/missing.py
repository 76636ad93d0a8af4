"""What a run did not measure, and what would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outlier_atlas.report.criteria import TITLES
from outlier_atlas.report.text import listed

Row = dict[str, Any]


def missing(criteria: Mapping[str, Row], configuration: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names, and why there is nothing of them.

    Args:
        criteria: the rows of `criteria` by name.
        configuration: of the run.
    """
    quantized = configuration["detection"]["quantization_error"]["sites"]
    switched = (
        ("Quantization error", quantized, "detection.quantization_error.sites names no site"),
        ("Perplexity", configuration["extraction"]["perplexity"], "extraction.perplexity is false"),
        ("Ablation", configuration["ablation"]["sequences"], "ablation.sequences is 0"),
        ("Weights", configuration["weights"]["measure"], "weights.measure is false"),
    )
    return [
        *((TITLES[name], _sites(row)) for name, row in criteria.items() if not row["measured"]),
        *((name, why) for name, on, why in switched if not on),
    ]


def _sites(criterion: Row) -> str:
    sites, absent = criterion["sites"].split(), criterion["missing_sites"].split()
    is_are = "is" if len(absent) == 1 else "are"
    return (
        f"defined on {listed(sites)}; {listed(absent)} {is_are} not among the sites of this run "
        f"(extraction.sites)"
    )
