"""Values to which the ablation sets massive activations (Sun et al. 2024, arXiv 2402.17762).

The authors set massive activations to zero or to fixed values in the first layer in which they
appear. They set them only at the tokens of the massive activations, and then run the rest of the
model. The fixed values are means of the massive activations. The means over first positions and
over other positions are separate, because magnitude and sign can differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outlier_atlas import tables
from outlier_atlas.ablation.variants import SetMassive
from outlier_atlas.criteria.massive_activations.tables import MASSIVE_ACTIVATIONS


@dataclass(frozen=True)
class MassiveValues:
    """The massive activations of each channel in the first layer in which it is massive.

    Attributes:
        site: site of the criterion.
        criterion: the block `detection.massive_activations` of the run's tables.
        first: first layer in which a channel is massive, by channel.
        means: means of a channel's massive activations in that layer, at the first position of
            sequences and at other positions, by channel.
    """

    site: str
    criterion: dict[str, Any]
    first: dict[int, int]
    means: dict[int, tuple[float, float]]

    @classmethod
    def of(cls, folder: Path) -> MassiveValues:
        """Read the massive activations from the tables of a run.

        Args:
            folder: folder of the tables.
        """
        rows = tables.read(folder, MASSIVE_ACTIVATIONS).to_pylist()
        criterion = tables.parameters(folder, MASSIVE_ACTIVATIONS)["massive_activations"]
        first: dict[int, int] = {}
        for row in rows:
            channel, layer = row["channel"], row["layer"]
            first[channel] = min(layer, first.get(channel, layer))
        values: dict[int, list[tuple[int, float]]] = defaultdict(list)
        for row in rows:
            if row["layer"] == first[row["channel"]]:
                values[row["channel"]].append((row["position"], row["value"]))
        means = {channel: _means(each) for channel, each in values.items()}
        return cls(criterion["site"], criterion, dict(sorted(first.items())), means)

    @property
    def channels(self) -> tuple[int, ...]:
        """The massive channels, ascending."""
        return tuple(self.first)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers in which a channel is set, ascending."""
        return tuple(sorted({*self.first.values()}))

    def edits(self, set_channels: Sequence[int], mean: bool) -> tuple[SetMassive, ...]:
        """Return the edits that set massive activations to a value.

        Args:
            set_channels: the channel that is set at the tokens of each of `channels`.
            mean: whether values are set to the means; otherwise they are set to zero.
        """
        return tuple(
            SetMassive(
                layer=self.first[channel],
                site=self.site,
                channel=channel,
                set_channel=set_channel,
                first=self.means[channel][0] if mean else 0.0,
                others=self.means[channel][1] if mean else 0.0,
                absolute=self.criterion["absolute"],
                ratio=self.criterion["ratio"],
                median=self.criterion["median"],
            )
            for channel, set_channel in zip(self.channels, set_channels, strict=True)
        )


def _means(values: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return the mean of the values at position 0 and the mean of the other values.

    If one group has no values, its mean is the mean of all values.
    """
    every = [value for _, value in values]
    first = [value for position, value in values if position == 0] or every
    others = [value for position, value in values if position] or every
    return float(np.mean(first)), float(np.mean(others))
