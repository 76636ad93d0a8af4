"""Ablation of massive activations, as single values or as whole channels."""

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
    """The set of all massive activations, each channel in the first layer in which it is massive.

    Random controls set the same number of values at the same tokens.
    """

    key = "massive_activations"

    def trials(self, context: TargetContext, outliers: Collection[int]) -> Iterator[Trial]:
        massive = MassiveValues.of(context.tables)
        if not massive.channels:
            return
        taps = [tap_of(context.architecture, massive.site, layer) for layer in massive.layers]
        width = min(tap.channels for tap in taps)

        def trial(intervention: str, channels: tuple[int, ...], draw: int | None = None) -> Trial:
            edits = massive.edits(channels, mean=intervention == "mean")
            return Trial(
                "massive_activations", intervention, Variant(edits), (massive.site,),
                tuple(sorted(channels)), draw=draw,
            )  # fmt: skip

        for intervention in context.settings.interventions:
            yield trial(intervention, massive.channels)
        others = [each for each in range(width) if each not in {*outliers, *massive.channels}]
        drawn = context.draws.sets(others, len(massive.channels), "massive activations")
        for draw, channels in enumerate(drawn):
            yield trial("random", channels, draw)


class MassiveChannelsTarget(Target):
    """Each channel with massive activations, at all tokens, in the first layer with one."""

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
