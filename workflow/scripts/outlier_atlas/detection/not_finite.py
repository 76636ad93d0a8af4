"""What each criterion could not look at: values that are NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from outlier_atlas.detection.criteria import LLM_INT8, Criterion
from outlier_atlas.detection.scan import Scan
from outlier_atlas.detection.sinks import Sinks
from outlier_atlas.settings.sites import ATTN_SINK, EXPERT_OUT


@dataclass(frozen=True)
class NotFinite:
    """What the numbers of a criterion leave out.

    Attributes:
        values: NaN and infinite values of its sites; of experts, tokens with one in an output.
        layers: those that it could not look at, ascending.
        all_layers: whether these are all of them.
    """

    values: int
    layers: tuple[int, ...]
    all_layers: bool


def not_finite(criteria: Mapping[str, Criterion], scan: Scan, sinks: Sinks) -> dict[str, NotFinite]:
    """Of each criterion that was measured, by its name."""
    return {
        name: _of_criterion(criterion, scan, sinks)
        for name, criterion in criteria.items()
        if criterion.measured
    }


def _of_criterion(criterion: Criterion, scan: Scan, sinks: Sinks) -> NotFinite:
    values = 0
    lacking: dict[int, list[bool]] = {}
    for site in criterion.sites:
        for layer, left_out, some in _layers(site, scan, sinks):
            values += left_out
            lacking.setdefault(layer, []).append(left_out > 0 and not some)
    # An outlier feature may be at any of its sites; the other criteria need all of theirs.
    enough = all if criterion.name == LLM_INT8 else any
    layers = sorted(layer for layer, of_sites in lacking.items() if enough(of_sites))
    return NotFinite(values, tuple(layers), bool(layers) and len(layers) == len(lacking))


def _layers(site: str, scan: Scan, sinks: Sinks) -> Iterator[tuple[int, int, bool]]:
    """Each layer of a site: how many values are not finite, and whether any is."""
    if site == ATTN_SINK:
        for layer, one in sinks.items():
            yield layer, one.nan, bool(one.values.any())
    elif site == EXPERT_OUT:
        for layer, experts in scan.experts.items():
            left_out = int(experts.nan.sum() + experts.infinite.sum())
            yield layer, left_out, not bool(np.isnan(experts.values).all())
    else:
        for (at, layer), magnitudes in scan.magnitudes.items():
            if at == site:
                yield layer, magnitudes.nan + magnitudes.infinite, bool(magnitudes.top)
