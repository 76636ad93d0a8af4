"""What is taken away, and how: from a run's findings and the configuration to trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from outlier_atlas import tables
from outlier_atlas.ablation.apply import experts_of, tap_of
from outlier_atlas.ablation.variants import (
    UNALTERED,
    SetChannel,
    Trial,
    Variant,
    ZeroExpert,
    ZeroExpertWeight,
    ZeroWeight,
)
from outlier_atlas.model.architecture import Architecture
from outlier_atlas.settings.ablation import AblationSettings

Place = TypeVar("Place", bound=int | tuple[int, int])

Means = Callable[[str, int, int], float]
"""The mean of a site's channel in a layer: site, layer, channel."""


@dataclass(frozen=True)
class Channels:
    """Channels that are taken away together.

    Attributes:
        target: kind of what they are.
        places: sites and layers, in each of which all of the channels are set.
        channels: ascending.
    """

    target: str
    places: tuple[tuple[str, int], ...]
    channels: tuple[int, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(site for site, _ in self.places))

    def variant(self, channels: Sequence[int], value: Callable[[str, int, int], float]) -> Variant:
        return Variant(
            tuple(
                SetChannel(layer, site, channel, value(site, layer, channel))
                for site, layer in self.places
                for channel in channels
            )
        )


@dataclass(frozen=True)
class Found:
    """What of a run is looked at: the configuration, the tables, the model, and the means."""

    settings: AblationSettings
    tables: Path
    architecture: Architecture
    mean: Means

    def trials(self) -> list[Trial]:
        """The unaltered model first; then, for each target, what is done to it.

        Raises:
            ValueError: a channel or a weight is not in the model, or a mean is not known.
        """
        sets, weights = [*self._channels()], [*self._weights()]
        outliers = {channel for each in sets for channel in each.channels}
        trials = [Trial("none", "none", UNALTERED)]
        for target, layer, row, column in weights:
            trials += self._of_weight(target, ZeroWeight(layer, row, column))
        trials += self._of_super_experts()
        for place in self.settings.expert_weights:
            trials += self._of_expert_weight(ZeroExpertWeight(*place))
        for each in sets:
            trials += self._of_channels(each, outliers)
        return trials

    def _weights(self) -> Iterator[tuple[str, int, int, int]]:
        if "super_weights" in self.settings.targets:
            rows = tables.read(self.tables, tables.SUPER_WEIGHTS).to_pylist()
            outputs = {r["layer"]: abs(r["output"]) for r in rows if r["super_weight"]}
            taken = self._largest(outputs)
            for found in (row for row in rows if row["layer"] in taken):
                yield "super_weight", found["layer"], found["row"], found["column"]
        for layer, row, column in self.settings.weights:
            yield "weight", layer, row, column

    def _channels(self) -> Iterator[Channels]:
        if "outlier_features" in self.settings.targets:
            yield from self._outlier_features()
        if "massive_channels" in self.settings.targets:
            yield from self._massive_channels()
        for site, layer, channel in self.settings.channels:
            layers = range(self.architecture.layers) if layer == "all" else [layer]
            yield Channels("channel", tuple((site, each) for each in layers), (channel,))

    def _outlier_features(self) -> Iterator[Channels]:
        features = tables.read(self.tables, tables.LLM_INT8_FEATURES).to_pylist()
        channels = sorted(row["channel"] for row in features if row["outlier_feature"])
        criteria = tables.read(self.tables, tables.CRITERIA).to_pylist()
        sites = next(row["sites"] for row in criteria if row["criterion"] == "llm_int8").split()
        if channels:
            layers = range(self.architecture.layers)
            places = tuple((site, layer) for layer in layers for site in sites)
            yield Channels("outlier_features", places, tuple(channels))

    def _massive_channels(self) -> Iterator[Channels]:
        rows = tables.read(self.tables, tables.MASSIVE_CHANNELS).to_pylist()
        first: dict[int, dict[str, Any]] = {}
        values: dict[int, float] = {}
        for row in sorted(rows, key=lambda row: int(row["layer"])):
            first.setdefault(row["channel"], row)
            values[row["channel"]] = max(abs(row["value"]), values.get(row["channel"], 0))
        taken = self._largest(values)
        for row in (row for channel, row in first.items() if channel in taken):
            yield Channels("massive_channel", ((row["site"], row["layer"]),), (row["channel"],))

    def _largest(self, magnitudes: Mapping[Place, float]) -> set[Place]:
        """Those with the largest magnitudes, as many as are taken away; the lower of equals."""
        ordered = sorted(magnitudes, key=lambda each: (-magnitudes[each], each))
        return {*ordered[: self.settings.most]}

    def _of_channels(self, of: Channels, outliers: set[int]) -> Iterator[Trial]:
        width = self._width(of)
        for intervention in self.settings.interventions:
            value = self.mean if intervention == "mean" else _zero
            yield Trial(
                of.target, intervention, of.variant(of.channels, value), of.sites, of.channels
            )
        others = [channel for channel in range(width) if channel not in outliers]
        for draw in range(self.settings.random_draws):
            count = min(len(of.channels), len(others))
            drawn = self._draw(draw).choice(others, count, replace=False)
            channels = tuple(sorted(int(channel) for channel in drawn))
            variant = of.variant(channels, _zero)
            yield Trial(of.target, "random", variant, of.sites, channels, draw=draw)

    def _of_weight(self, target: str, weight: ZeroWeight) -> Iterator[Trial]:
        into = tap_of(self.architecture, "mlp_hidden", weight.layer).channels
        out = self.architecture.hidden_size
        if weight.row >= out or weight.column >= into:
            raise ValueError(
                f"ablation.weights: the down projection of layer {weight.layer} has {out} rows and "
                f"{into} columns, and no weight [{weight.row}, {weight.column}]"
            )
        drawn = [
            ZeroWeight(weight.layer, *(int(rng.integers(n)) for n in (out, into)))
            for rng in map(self._draw, range(self.settings.random_draws))
        ]
        for draw, each in [(None, weight), *enumerate(drawn)]:
            how = "zero" if draw is None else "random"
            yield Trial(target, how, Variant((each,)), row=each.row, column=each.column, draw=draw)

    def _of_expert_weight(self, weight: ZeroExpertWeight) -> Iterator[Trial]:
        tap = experts_of(self.architecture, weight.layer)
        out = self.architecture.hidden_size
        sizes = (out, tap.entries // out)
        if weight.expert >= tap.experts or weight.row >= sizes[0] or weight.column >= sizes[1]:
            raise ValueError(
                f"ablation.expert_weights: layer {weight.layer} has {tap.experts} experts, whose "
                f"down projections have {sizes[0]} rows and {sizes[1]} columns, and no weight "
                f"[{weight.expert}, {weight.row}, {weight.column}]"
            )
        drawn = [
            replace(weight, row=int(rng.integers(sizes[0])), column=int(rng.integers(sizes[1])))
            for rng in map(self._draw, range(self.settings.random_draws))
        ]
        for draw, each in [(None, weight), *enumerate(drawn)]:
            yield Trial(
                "expert_weight", "zero" if draw is None else "random", Variant((each,)),
                expert=each.expert, row=each.row, column=each.column, draw=draw,
            )  # fmt: skip

    def _of_super_experts(self) -> Iterator[Trial]:
        if "super_experts" not in self.settings.targets:
            return
        rows = tables.read(self.tables, tables.SUPER_EXPERTS).to_pylist()
        outputs = {(row["layer"], row["expert"]): abs(row["value"]) for row in rows}
        for layer, expert in sorted(self._largest(outputs)):
            experts = range(experts_of(self.architecture, layer).experts)
            others = [each for each in experts if (layer, each) not in outputs]
            draws = range(self.settings.random_draws if others else 0)
            drawn = [int(self._draw(draw).choice(others)) for draw in draws]
            for draw, each in [(None, expert), *enumerate(drawn)]:
                how = "zero" if draw is None else "random"
                variant = Variant((ZeroExpert(layer, each),))
                yield Trial("super_expert", how, variant, expert=each, draw=draw)

    def _width(self, of: Channels) -> int:
        """The channels that all of its sites have."""
        width = min(tap_of(self.architecture, site, layer).channels for site, layer in of.places)
        if of.channels[-1] >= width:
            raise ValueError(
                f"ablation.channels: {' and '.join(of.sites)} has {width} channels, and no channel "
                f"{of.channels[-1]}"
            )
        return width

    def _draw(self, draw: int) -> np.random.Generator:
        return np.random.default_rng([self.settings.seed, draw])


def _zero(site: str, layer: int, channel: int) -> float:
    return 0.0
