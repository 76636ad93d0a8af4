"""Means of channels over a run's tokens, from the store or from summaries."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.statistics.summary import Summary
from outlier_atlas.store.commits import Commits
from outlier_atlas.store.layout import Target
from outlier_atlas.store.run import Run
from outlier_atlas.store.summaries import LostSummaryError
from outlier_atlas.store.target_chunks import DamagedChunkError


@dataclass(frozen=True)
class Means:
    """The means of channels. A site and layer is read once, when its first mean is needed.

    Attributes:
        run: the run.
        commits: the commits that count.
    """

    run: Run
    commits: Commits
    _known: dict[Target, NDArray[np.float64]] = field(default_factory=dict)

    def __call__(self, site: str, layer: int, channel: int) -> float:
        """Return the mean of a channel's finite values over all tokens, summed in float64.

        The store and summaries give the same mean up to the order of additions.

        Raises:
            ValueError: the site was not measured in that layer, or its data is damaged.
        """
        if site not in self.run.layout.sites or layer not in self.run.layout.layers:
            raise ValueError(
                f"ablation.interventions: the mean of {site} in layer {layer} is not known, since "
                f"it was not measured; name it in extraction.sites, or take `interventions: [zero]`"
            )
        target = self.run.layout.target(site, layer)
        if target not in self._known:
            compute = self._summarized if target.is_summary else self._stored
            self._known[target] = compute(target)
        return float(self._known[target][channel])

    def _stored(self, target: Target) -> NDArray[np.float64]:
        arrays = self.run.arrays(self.commits)
        count, total = np.zeros((2, self.run.layout.channels(target)))
        try:
            for chunk in range(self.run.layout.chunks):
                rows = arrays.read(target, *self.run.layout.chunk_range(chunk))
                finite = np.isfinite(rows)
                count += finite.sum(axis=0)
                total += rows.sum(axis=0, dtype=np.float64, where=finite)
        except DamagedChunkError as damage:
            raise self.run.give_up(arrays, [damage]) from damage
        return total / count

    def _summarized(self, target: Target) -> NDArray[np.float64]:
        count, total = np.zeros((2, self.run.layout.channels(target)))
        try:
            for chunk in range(self.run.layout.chunks):
                for tile in self.run.committed_summaries(self.commits, target, chunk, Summary):
                    count += tile.channel_count
                    total += tile.channel_count * tile.channel_mean
        except LostSummaryError as lost:
            raise self.run.give_up_summaries([lost]) from lost
        return total / count
