"""Trials of a run, from the findings of criteria and from the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outlier_atlas.ablation.target import Channels, Devices, Target, TargetContext
from outlier_atlas.ablation.variants import (
    UNALTERED,
    Trial,
    Weight,
    ZeroExpertWeight,
    ZeroWeight,
)
from outlier_atlas.criteria.targets import TARGETS

if TYPE_CHECKING:
    from outlier_atlas.ablation.job import Ablation
    from outlier_atlas.ablation.streams import Streams


@dataclass(frozen=True)
class Targets:
    """The ablation targets of a run.

    Attributes:
        context: configuration, tables, model and means.
    """

    context: TargetContext

    @property
    def _kinds(self) -> list[Target]:
        """The kinds of targets that the configuration names."""
        return [target for target in TARGETS if target.key in self.context.settings.targets]

    def trials(self) -> list[Trial]:
        """Return the trial of the unaltered model, followed by the trials of each target.

        Raises:
            ValueError: a channel or a weight is not in the model, or a mean is not known.
        """
        context = self.context
        sets, weights = [*self._channels()], [*self._weights()]
        outliers = {channel for each in sets for channel in each.channels}
        known = {each for kind in self._kinds for each in kind.known_weights(context)}
        known |= {weight for _, weight in weights}
        trials = [Trial("none", "none", UNALTERED)]
        for target, weight in weights:
            trials += context.weight_trials(target, weight, known)
        for kind in self._kinds:
            trials += kind.trials(context, outliers)
        for each in sets:
            trials += context.channel_trials(each, outliers)
        return trials

    def later_trials(
        self, ablation: Ablation, streams: Streams, devices: Devices
    ) -> Iterator[Trial]:
        """Yield the trials that result from a search of the held-out sequences."""
        for kind in self._kinds:
            yield from kind.later_trials(self.context, ablation, streams, devices)

    def _weights(self) -> Iterator[tuple[str, Weight]]:
        for kind in self._kinds:
            yield from kind.weights(self.context)
        for place in self.context.settings.weights:
            yield "weight", ZeroWeight(*place)
        for expert_place in self.context.settings.expert_weights:
            yield "expert_weight", ZeroExpertWeight(*expert_place)

    def _channels(self) -> Iterator[Channels]:
        for kind in self._kinds:
            yield from kind.channels(self.context)
        for site, layer, channel in self.context.settings.channels:
            layers = range(self.context.architecture.layers) if layer == "all" else [layer]
            yield Channels("channel", tuple((site, each) for each in layers), (channel,))
