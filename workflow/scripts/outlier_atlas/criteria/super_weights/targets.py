"""Ablation of super weights: one by one, together, and those of a later search."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from outlier_atlas import tables
from outlier_atlas.ablation.target import Devices, Target, TargetContext, matrix_of
from outlier_atlas.ablation.variants import Trial, Variant, Weight, ZeroExpertWeight, ZeroWeight
from outlier_atlas.criteria.super_weights.search import search
from outlier_atlas.criteria.super_weights.tables import SUPER_WEIGHTS

if TYPE_CHECKING:
    from outlier_atlas.ablation.job import Ablation
    from outlier_atlas.ablation.streams import Streams


class SuperWeightsTarget(Target):
    """The super weights: each one, all together as in the paper, and those of a later search."""

    key = "super_weights"

    def weights(self, context: TargetContext) -> Iterator[tuple[str, Weight]]:
        outputs = _outputs(context)
        taken = context.largest(outputs, key=lambda weight: (weight.layer, weight.expert or 0))
        yield from (("super_weight", weight) for weight in outputs if weight in taken)

    def known_weights(self, context: TargetContext) -> list[Weight]:
        return [*_outputs(context)]

    def trials(self, context: TargetContext, outliers: Collection[int]) -> Iterator[Trial]:
        weights = self.known_weights(context)
        if len(weights) < 2:
            return
        yield Trial("super_weights", "zero", Variant(tuple(weights)))
        matrices: dict[Any, list[Weight]] = defaultdict(list)
        for weight in weights:
            matrices[matrix_of(weight)].append(weight)
        number = context.settings.random_draws
        drawn = [
            context.random_weights(members[0], members, number * len(members))
            for members in matrices.values()
        ]
        for draw in range(number):
            parts = [
                each[draw * n : (draw + 1) * n]
                for each, n in zip(drawn, map(len, matrices.values()), strict=True)
            ]
            if all(len(p) == len(m) for p, m in zip(parts, matrices.values(), strict=True)):
                edits = tuple(weight for part in parts for weight in part)
                yield Trial("super_weights", "random", Variant(edits), draw=draw)

    def later_trials(
        self, context: TargetContext, ablation: Ablation, streams: Streams, devices: Devices
    ) -> Iterator[Trial]:
        criterion = tables.parameters(context.tables, SUPER_WEIGHTS)["super_weights"]
        rounds, known = context.settings.search_rounds, self.known_weights(context)
        for each in search(ablation, known, criterion, rounds, streams, devices):
            # The weight has an effect only if the others are zero, so all are set to zero together.
            weight = each.weight
            yield Trial(
                "later_super_weight", "zero", Variant((*each.zero, weight)),
                expert=weight.expert, row=weight.row, column=weight.column, later=each,
            )  # fmt: skip


def _outputs(context: TargetContext) -> dict[Weight, float]:
    """Return the super weights of the run with their largest |output|."""
    rows = tables.read(context.tables, SUPER_WEIGHTS).to_pylist()
    return {_weight_of(row): abs(row["output"]) for row in rows if row["super_weight"]}


def _weight_of(row: Mapping[str, Any]) -> Weight:
    """Return the weight of a row of `super_weights`."""
    if row["expert"] is None:
        return ZeroWeight(row["layer"], row["row"], row["column"])
    return ZeroExpertWeight(row["layer"], row["expert"], row["row"], row["column"])
