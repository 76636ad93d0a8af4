"""What is ablated, and how: trials from a run's findings and the configuration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from outlier_atlas import tables
from outlier_atlas.ablation.apply import experts_of, tap_of
from outlier_atlas.ablation.draws import Draws
from outlier_atlas.ablation.massive import MassiveValues
from outlier_atlas.ablation.variants import (
    UNALTERED,
    Later,
    SetChannel,
    Trial,
    Variant,
    Weight,
    ZeroExpert,
    ZeroExpertWeight,
    ZeroWeight,
)
from outlier_atlas.criteria.llm_int8.tables import LLM_INT8_FEATURES
from outlier_atlas.criteria.massive_activations.tables import MASSIVE_CHANNELS
from outlier_atlas.criteria.super_experts.tables import SUPER_EXPERTS
from outlier_atlas.criteria.super_weights.tables import SUPER_WEIGHTS
from outlier_atlas.criteria.tables import CRITERIA
from outlier_atlas.roles.architecture import Architecture
from outlier_atlas.settings.ablation import AblationSettings

Place = TypeVar("Place")

Means = Callable[[str, int, int], float]
"""The mean of a site's channel in a layer: site, layer, channel."""


@dataclass(frozen=True)
class Channels:
    """Channels that are ablated together.

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
class Targets:
    """The targets of ablation, from the configuration, the tables, the model, and the means."""

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
        known = self.super_weights()[0]
        for target, weight in weights:
            trials += self._of_weight(target, weight, {*known, *(each for _, each in weights)})
        trials += self._of_all_super_weights(known)
        trials += self._of_super_experts()
        if "massive_activations" in self.settings.targets:
            trials += self._of_massive_activations(outliers)
        for each in sets:
            trials += self._of_channels(each, outliers)
        return trials

    def _weights(self) -> Iterator[tuple[str, Weight]]:
        if "super_weights" in self.settings.targets:
            rows = tables.read(self.tables, SUPER_WEIGHTS).to_pylist()
            found = {_weight_of(row): abs(row["output"]) for row in rows if row["super_weight"]}
            taken = self._largest(found, key=lambda weight: (weight.layer, weight.expert or 0))
            yield from (("super_weight", weight) for weight in found if weight in taken)
        for place in self.settings.weights:
            yield "weight", ZeroWeight(*place)
        for expert_place in self.settings.expert_weights:
            yield "expert_weight", ZeroExpertWeight(*expert_place)

    def super_weights(self) -> tuple[list[Weight], dict[str, float]]:
        """All super weights of the run, and the criterion that they were found with; none where
        they are no target."""
        if "super_weights" not in self.settings.targets:
            return [], {}
        rows = tables.read(self.tables, SUPER_WEIGHTS).to_pylist()
        criterion = tables.parameters(self.tables, SUPER_WEIGHTS)["super_weights"]
        return [_weight_of(row) for row in rows if row["super_weight"]], criterion

    def _channels(self) -> Iterator[Channels]:
        if "outlier_features" in self.settings.targets:
            yield from self._outlier_features()
        if "massive_channels" in self.settings.targets:
            yield from self._massive_channels()
        for site, layer, channel in self.settings.channels:
            layers = range(self.architecture.layers) if layer == "all" else [layer]
            yield Channels("channel", tuple((site, each) for each in layers), (channel,))

    def _outlier_features(self) -> Iterator[Channels]:
        features = tables.read(self.tables, LLM_INT8_FEATURES).to_pylist()
        channels = sorted(row["channel"] for row in features if row["outlier_feature"])
        criteria = tables.read(self.tables, CRITERIA).to_pylist()
        sites = next(row["sites"] for row in criteria if row["criterion"] == "llm_int8").split()
        if channels:
            layers = range(self.architecture.layers)
            places = tuple((site, layer) for layer in layers for site in sites)
            yield Channels("outlier_features", places, tuple(channels))

    def _massive_channels(self) -> Iterator[Channels]:
        rows = tables.read(self.tables, MASSIVE_CHANNELS).to_pylist()
        first: dict[int, dict[str, Any]] = {}
        values: dict[int, float] = {}
        for row in sorted(rows, key=lambda row: int(row["layer"])):
            first.setdefault(row["channel"], row)
            values[row["channel"]] = max(abs(row["value"]), values.get(row["channel"], 0))
        taken = self._largest(values)
        for row in (row for channel, row in first.items() if channel in taken):
            yield Channels("massive_channel", ((row["site"], row["layer"]),), (row["channel"],))

    def _largest(
        self, magnitudes: Mapping[Place, float], key: Callable[[Place], Any] = lambda each: each
    ) -> set[Place]:
        """Those with the largest magnitudes, as many as are ablated; the lower of equals."""
        ordered = sorted(magnitudes, key=lambda each: (-magnitudes[each], key(each)))
        return {*ordered[: self.settings.most]}

    def _of_channels(self, of: Channels, outliers: set[int]) -> Iterator[Trial]:
        width = self._width(of)
        for intervention in self.settings.interventions:
            value = self.mean if intervention == "mean" else _zero
            yield Trial(
                of.target, intervention, of.variant(of.channels, value), of.sites, of.channels
            )
        others = [channel for channel in range(width) if channel not in outliers]
        drawn = self._draws.sets(others, len(of.channels), f"{of.target} {of.channels}")
        for draw, channels in enumerate(drawn):
            variant = of.variant(channels, _zero)
            yield Trial(of.target, "random", variant, of.sites, channels, draw=draw)

    def _of_massive_activations(self, outliers: set[int]) -> Iterator[Trial]:
        """All massive activations together, each channel in the first layer in which it is
        massive; random: as many values at the same tokens."""
        found = MassiveValues.of(self.tables)
        if not found.channels:
            return
        width = min(tap_of(self.architecture, found.site, each).channels for each in found.layers)

        def trial(intervention: str, channels: tuple[int, ...], draw: int | None = None) -> Trial:
            edits = found.edits(channels, mean=intervention == "mean")
            return Trial(
                "massive_activations", intervention, Variant(edits), (found.site,),
                tuple(sorted(channels)), draw=draw,
            )  # fmt: skip

        for intervention in self.settings.interventions:
            yield trial(intervention, found.channels)
        others = [each for each in range(width) if each not in {*outliers, *found.channels}]
        drawn = self._draws.sets(others, len(found.channels), "massive activations")
        for draw, channels in enumerate(drawn):
            yield trial("random", channels, draw)

    def _of_weight(self, target: str, weight: Weight, targets: set[Weight]) -> Iterator[Trial]:
        taken = {(w.row, w.column) for w in targets if _matrix_of(w) == _matrix_of(weight)}
        drawn = self._draws.places(self._shape(weight), taken, _named(weight))
        others = [replace(weight, row=row, column=column) for row, column in drawn]
        for draw, each in [(None, weight), *enumerate(others)]:
            yield Trial(
                target, "zero" if draw is None else "random", Variant((each,)),
                expert=each.expert, row=each.row, column=each.column, draw=draw,
            )  # fmt: skip

    def _of_all_super_weights(self, weights: Sequence[Weight]) -> Iterator[Trial]:
        """All super weights together, as in the paper, where there are several."""
        if len(weights) < 2:
            return
        yield Trial("super_weights", "zero", Variant(tuple(weights)))
        matrices: dict[Any, list[Weight]] = defaultdict(list)
        for weight in weights:
            matrices[_matrix_of(weight)].append(weight)
        drawn = []
        for members in matrices.values():
            taken = {(each.row, each.column) for each in members}
            draws = replace(self._draws, number=self._draws.number * len(members))
            places = draws.places(self._shape(members[0]), taken, _named(members[0]))
            drawn.append([replace(members[0], row=r, column=c) for r, c in places])
        for draw in range(self._draws.number):
            parts = [
                each[draw * n : (draw + 1) * n]
                for each, n in zip(drawn, map(len, matrices.values()), strict=True)
            ]
            if all(len(p) == len(m) for p, m in zip(parts, matrices.values(), strict=True)):
                edits = tuple(weight for part in parts for weight in part)
                yield Trial("super_weights", "random", Variant(edits), draw=draw)

    def _shape(self, weight: Weight) -> tuple[int, int]:
        """Rows and columns of the down projection that a weight is in.

        Raises:
            ValueError: it is not in the model.
        """
        out, row, column = self.architecture.hidden_size, weight.row, weight.column
        if isinstance(weight, ZeroWeight):
            into = tap_of(self.architecture, "mlp_hidden", weight.layer).channels
            if row >= out or column >= into:
                raise ValueError(
                    f"ablation.weights: the down projection of layer {weight.layer} has {out} "
                    f"rows and {into} columns, and no weight [{row}, {column}]"
                )
            return out, into
        tap = experts_of(self.architecture, weight.layer)
        into = tap.entries // out
        if weight.expert >= tap.experts or row >= out or column >= into:
            raise ValueError(
                f"ablation.expert_weights: layer {weight.layer} has {tap.experts} experts, whose "
                f"down projections have {out} rows and {into} columns, and no weight "
                f"[{weight.expert}, {row}, {column}]"
            )
        return out, into

    def _of_super_experts(self) -> Iterator[Trial]:
        if "super_experts" not in self.settings.targets:
            return
        rows = tables.read(self.tables, SUPER_EXPERTS).to_pylist()
        outputs = {(row["layer"], row["expert"]): abs(row["value"]) for row in rows}
        for layer, expert in sorted(self._largest(outputs)):
            experts = range(experts_of(self.architecture, layer).experts)
            others = [each for each in experts if (layer, each) not in outputs]
            of = f"expert {expert} of layer {layer}"
            drawn = [each for (each,) in self._draws.sets(others, 1, of)]
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

    @property
    def _draws(self) -> Draws:
        return Draws(self.settings.random_draws, self.settings.seed)


def later_trials(later: Sequence[Later]) -> Iterator[Trial]:
    """Each super weight that shows once others are zero, set to zero together with them."""
    for each in later:
        weight = each.weight
        yield Trial(
            "later_super_weight", "zero", Variant((*each.zero, weight)),
            expert=weight.expert, row=weight.row, column=weight.column, later=each,
        )  # fmt: skip


def _weight_of(row: Mapping[str, Any]) -> Weight:
    """The weight of a row of `super_weights`."""
    if row["expert"] is None:
        return ZeroWeight(row["layer"], row["row"], row["column"])
    return ZeroExpertWeight(row["layer"], row["expert"], row["row"], row["column"])


def _matrix_of(weight: Weight) -> tuple[int, int | None]:
    """Layer and expert of the matrix that a weight is in."""
    return weight.layer, weight.expert


def _named(weight: Weight) -> str:
    expert = "" if weight.expert is None else f" of expert {weight.expert}"
    return f"the down projection{expert} of layer {weight.layer}"


def _zero(site: str, layer: int, channel: int) -> float:
    return 0.0
