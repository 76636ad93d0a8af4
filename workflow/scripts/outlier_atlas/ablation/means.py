"""Means of channels over a run's tokens, from its store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.layout import Layout, Target
from outlier_atlas.store.repair import give_up
from outlier_atlas.store.targets import DamagedChunkError


class StoredMeans:
    """Each site and layer is read once, a chunk at a time, when a mean of it is first asked for.

    Args:
        run: folder of the run.
        layout: of its store.
        arrays: of its store, with the commits that they are held against.
    """

    def __init__(self, run: Path, layout: Layout, arrays: Arrays) -> None:
        self._run, self._layout, self._arrays = run, layout, arrays
        self._known: dict[Target, NDArray[np.float64]] = {}

    def __call__(self, site: str, layer: int, channel: int) -> float:
        """The mean of a channel over all tokens of the run, summed in float64.

        Raises:
            ValueError: the site was not stored in that layer, or its chunks are damaged.
        """
        target = Target(site, layer)
        if target not in self._known:
            self._known[target] = self._read(target)
        return float(self._known[target][channel])

    def _read(self, target: Target) -> NDArray[np.float64]:
        layout = self._layout
        if target.array not in layout.store or target.layer not in layout.layers:
            raise ValueError(
                f"ablation.interventions: the mean of {target.array} in layer {target.layer} is "
                f"not known, because it was not stored; store it, or take `interventions: [zero]`"
            )
        total = np.zeros(layout.channels(target))
        try:
            for chunk in range(layout.chunks):
                rows = self._arrays.read(target, *layout.chunk_range(chunk))
                total += rows.sum(axis=0, dtype=np.float64)
        except DamagedChunkError as damage:
            raise give_up(self._run, self._arrays, [damage]) from damage
        return total / layout.tokens
