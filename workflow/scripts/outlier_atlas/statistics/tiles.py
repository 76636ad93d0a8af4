"""The summary of a tile of any site."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.settings.sites import EXPERT_OUT
from outlier_atlas.statistics.experts import ExpertSummary, summarize_experts
from outlier_atlas.statistics.summary import Summary, TileRange, Values, summarize

AnySummary = Summary | ExpertSummary


def kind_of(site: str) -> type[AnySummary]:
    """Return the type of summary for the tiles of a site."""
    return ExpertSummary if site == EXPERT_OUT else Summary


def summary_of(
    site: str,
    values: Values,
    tile: TileRange,
    floor: float,
    experts: int,
    included: NDArray[np.bool_] | None = None,
) -> AnySummary:
    """Return the summary of a tile.

    Args:
        site: site of the values.
        values: (token, channel), or (token, 5 x routed) at `expert_out`; on any device.
        tile: the tokens of the tile.
        floor: least |x| of an exceedance.
        experts: number of routed experts of the layer.
        included: (token,): whether the token is included; None includes all tokens.
    """
    if site == EXPERT_OUT:
        return summarize_experts(values, tile, experts, included)
    return summarize(values, tile, floor, included)
