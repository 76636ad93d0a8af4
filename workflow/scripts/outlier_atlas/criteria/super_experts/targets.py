"""Ablation of each super expert, with other experts of its layer as controls."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from outlier_atlas import tables
from outlier_atlas.ablation.apply import experts_of
from outlier_atlas.ablation.target import Target, TargetContext
from outlier_atlas.ablation.variants import Trial, Variant, ZeroExpert
from outlier_atlas.criteria.super_experts.tables import SUPER_EXPERTS


class SuperExpertsTarget(Target):
    """The super experts, each ablated on its own."""

    key = "super_experts"

    def trials(self, context: TargetContext, outliers: Collection[int]) -> Iterator[Trial]:
        rows = tables.read(context.tables, SUPER_EXPERTS).to_pylist()
        outputs = {(row["layer"], row["expert"]): abs(row["value"]) for row in rows}
        for layer, expert in sorted(context.largest(outputs)):
            experts = range(experts_of(context.architecture, layer).experts)
            others = [each for each in experts if (layer, each) not in outputs]
            of = f"expert {expert} of layer {layer}"
            drawn = [each for (each,) in context.draws.sets(others, 1, of)]
            for draw, each in [(None, expert), *enumerate(drawn)]:
                how = "zero" if draw is None else "random"
                variant = Variant((ZeroExpert(layer, each),))
                yield Trial("super_expert", how, variant, expert=each, draw=draw)
