"""The ablation of massive activations: their values alone, or whole channels."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from outlier_atlas import tables
from outlier_atlas.ablation.apply import tap_of
from outlier_atlas.ablation.target import Channels, Target, TargetContext
from outlier_atlas.ablation.variants import Trial, Variant
from outlier_atlas.criteria.massive_activations.massive_values import MassiveValues
from outlier_atlas.criteria.massive_activations.tables import MASSIVE_CHANNELS


class MassiveActivationsTarget(Target):
    """All massive activations together, each channel in the first layer in which it is massive.

    Random controls are as many values at the same tokens.
    """

    key = "massive_activations"

    def trials(self, context: TargetContext, outliers: Collection[int]) -> Iterator[Trial]:
        found = MassiveValues.of(context.tables)
        if not found.channels:
            return
        taps = [tap_of(context.architecture, found.site, layer) for layer in found.layers]
        width = min(tap.channels for tap in taps)

        def trial(intervention: str, channels: tuple[int, ...], draw: int | None = None) -> Trial:
            edits = found.edits(channels, mean=intervention == "mean")
            return Trial(
                "massive_activations", intervention, Variant(edits), (found.site,),
                tuple(sorted(channels)), draw=draw,
            )  # fmt: skip

        for intervention in context.settings.interventions:
            yield trial(intervention, found.channels)
        others = [each for each in range(width) if each not in {*outliers, *found.channels}]
        drawn = context.draws.sets(others, len(found.channels), "massive activations")
        for draw, channels in enumerate(drawn):
            yield trial("random", channels, draw)


class MassiveChannelsTarget(Target):
    """Each channel with massive activations at all tokens, in the first layer with one."""

    key = "massive_channels"

    def channels(self, context: TargetContext) -> Iterator[Channels]:
        rows = tables.read(context.tables, MASSIVE_CHANNELS).to_pylist()
        first: dict[int, dict[str, Any]] = {}
        values: dict[int, float] = {}
        for row in sorted(rows, key=lambda row: int(row["layer"])):
            first.setdefault(row["channel"], row)
            values[row["channel"]] = max(abs(row["value"]), values.get(row["channel"], 0))
        taken = context.largest(values)
        for row in (row for channel, row in first.items() if channel in taken):
            yield Channels("massive_channel", ((row["site"], row["layer"]),), (row["channel"],))
