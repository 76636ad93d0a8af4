"""The summary of a tile, whatever its site holds."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from outlier_atlas.settings.sites import EXPERT_OUT
from outlier_atlas.statistics.experts import ExpertSummary, summarize_experts
from outlier_atlas.statistics.summary import Place, Summary, summarize

AnySummary = Summary | ExpertSummary


def kind_of(site: str) -> type[AnySummary]:
    """What a tile of a site is summarized in."""
    return ExpertSummary if site == EXPERT_OUT else Summary


def summary_of(
    site: str,
    values: torch.Tensor,
    place: Place,
    floor: float,
    experts: int,
    kept: NDArray[np.bool_] | None = None,
) -> AnySummary:
    """The summary of a tile.

    Args:
        site: of the values.
        values: (token, channel), or of `expert_out` (token, 5 x routed); on any device.
        place: where the tile is.
        floor: the least |x| that is kept with its place.
        experts: number of routed experts of the layer.
        kept: (token,): the tokens that count; None where all do.
    """
    if site == EXPERT_OUT:
        return summarize_experts(values, place, experts, kept)
    return summarize(values, place, floor, kept)
