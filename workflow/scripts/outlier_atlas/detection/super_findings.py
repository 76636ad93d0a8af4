"""Super weights and super experts: which they are, and their tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from outlier_atlas.criteria.super_weights.settings import SuperWeightsSettings
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.detection.columns import Columns, interval_columns, located
from outlier_atlas.detection.scan import Scan
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.sites import SUPER_WEIGHT_SITES
from outlier_atlas.statistics.bootstrap import Bootstrap, Interval
from outlier_atlas.statistics.codes import Float32
from outlier_atlas.statistics.super_weights import Spike

ValuesOf = Callable[[Sequence[tuple[int, int | None, int, int]]], Sequence[float | None]]
"""Reads weights of down projections, by layer, routed expert (or None), row and column."""


@dataclass(frozen=True)
class SuperExpert:
    """A super expert, and what it was held against.

    Attributes:
        layer, expert: which.
        value: its largest |down_proj output|, with its sign; in which channel, of which token.
        quantile: over all experts.
        largest_share: |value| over the largest of all experts.
        growth: of the residual stream's largest |x| over the measured layer before; None for the
            first.
    """

    layer: int
    expert: int
    value: float
    channel: int
    token: int
    quantile: float
    largest_share: float
    growth: float | None


@dataclass(frozen=True)
class SuperWeight:
    """The largest output of a down projection, and the weight between it and the largest input.

    Attributes:
        layer: the layer.
        expert: the routed expert; None for a down projection of the layer's own.
        spike: where they are.
        weight: the weight as the checkpoint has it; None where it is not known.
        share: of the output, that this weight makes; None where it is not known.
        passes: whether it is a super weight; None where all but the share passes and that is not
            known.
    """

    layer: int
    expert: int | None
    spike: Spike
    weight: float | None
    share: float | None
    passes: bool | None


def super_weights(
    scan: Scan, settings: SuperWeightsSettings, values_of: ValuesOf, dtype: str
) -> list[SuperWeight]:
    """One for each layer with a down projection of its own, and for each routed expert whose
    largest input and output are above the threshold; by layer and expert.

    Args:
        dtype: that the run computes in: the weights are rounded to it.
    """
    found: list[tuple[int, int | None, Spike]] = [
        (layer, None, down.spike) for layer, down in scan.down_projections.items() if down.spike
    ]
    for layer, experts in scan.experts.items():
        each = ((expert, experts.spike(expert)) for expert in range(experts.experts))
        found += [
            (layer, expert, spike)
            for expert, spike in each
            if spike and spike.above(settings.threshold)
        ]
    found.sort(key=lambda one: (one[0], -1 if one[1] is None else one[1]))
    places = [(layer, expert, spike.row, spike.column) for layer, expert, spike in found]
    weights = values_of(places) if places else []
    return [
        _super_weight(*one, weight, settings, dtype)
        for one, weight in zip(found, weights, strict=True)
    ]


def _super_weight(
    layer: int,
    expert: int | None,
    spike: Spike,
    weight: float | None,
    settings: SuperWeightsSettings,
    dtype: str,
) -> SuperWeight:
    share: float | None = None
    passes: bool | None = spike.above(settings.threshold)
    if weight is not None and spike.output:
        held = float(torch.tensor(weight).to(getattr(torch, dtype)))
        share = held * spike.input / spike.output
    if passes:
        passes = None if share is None else share >= settings.min_share
    return SuperWeight(layer, expert, spike, weight, share, passes)


def super_weight_columns(
    found: Sequence[SuperWeight], tokens: TokenStore, scan: Scan, bootstrap: Bootstrap
) -> Columns:
    """The table of super weights."""
    of_sequences = [
        scan.magnitudes[SUPER_WEIGHT_SITES[1], w.layer].of_sequences
        if w.expert is None
        else scan.experts[w.layer].largest[:, w.expert]
        for w in found
    ]
    return {
        "layer": [w.layer for w in found],
        "expert": [w.expert for w in found],
        "super_weight": [w.passes for w in found],
        "row": [w.spike.row for w in found],
        "column": [w.spike.column for w in found],
        "weight": [w.weight for w in found],
        "input": [w.spike.input for w in found],
        "output": [w.spike.output for w in found],
        "share": [w.share for w in found],
        **located(tokens, [w.spike.token for w in found]),
        **interval_columns("output", [bootstrap.maxima(each) for each in of_sequences]),
    }


def super_experts(scan: Scan, settings: DetectionSettings) -> list[SuperExpert]:
    """The super experts, by layer and expert."""
    # In float64, or a quantile between two values would be rounded to one of them.
    values = {layer: np.abs(each.values.astype(np.float64)) for layer, each in scan.experts.items()}
    known = np.concatenate([v[~np.isnan(v)] for v in values.values()])
    if not len(known):
        return []
    criterion = settings.super_experts
    quantile, largest = float(np.quantile(known, criterion.quantile)), float(known.max())
    found = []
    for layer, growth in _forming(scan, settings).items():
        high = (values[layer] > quantile) & (values[layer] > criterion.ratio * largest)
        each = scan.experts[layer]
        found += [
            SuperExpert(
                layer, expert, float(each.values[expert]), int(each.channels[expert]),
                int(each.tokens[expert]), quantile, float(values[layer][expert]) / largest, growth,
            )
            for expert in np.flatnonzero(high).tolist()
        ]  # fmt: skip
    return found


def _forming(scan: Scan, settings: DetectionSettings) -> dict[int, float | None]:
    """The layers in which massive activations form, and how much the largest |x| grows there."""
    forming: dict[int, float | None] = {}
    before: float | None = None
    for layer, massive in sorted(scan.massive.items()):
        top = scan.magnitudes[settings.massive_activations.site, layer].top
        if not top:  # nothing is known of it: the layer after it has none to be compared with
            before = None
            continue
        largest = top[0]
        growth = None if before is None else largest / before if before else float("inf")
        if massive.found() and (growth is None or growth >= settings.super_experts.growth):
            forming[layer] = growth
        before = largest
    return forming


def super_expert_columns(
    found: Sequence[SuperExpert], tokens: TokenStore, scan: Scan, bootstrap: Bootstrap
) -> Columns:
    """The table of super experts."""
    largest = [scan.experts[e.layer].largest[:, e.expert] for e in found]
    shares = [_largest_share(of_expert, scan, bootstrap) for of_expert in largest]
    return {
        "layer": [e.layer for e in found],
        "expert": [e.expert for e in found],
        "channel": [e.channel for e in found],
        **located(tokens, [e.token for e in found]),
        "value": [e.value for e in found],
        "quantile": [e.quantile for e in found],
        "largest_share": [e.largest_share for e in found],
        "growth": [e.growth for e in found],
        **interval_columns("value", [bootstrap.maxima(of_expert) for of_expert in largest]),
        **interval_columns("largest_share", shares),
    }


def _largest_share(of_expert: Float32, scan: Scan, bootstrap: Bootstrap) -> Interval:
    """The interval of an expert's share of the largest of all experts, both of the same draw."""
    of_all = np.fmax.reduce([np.fmax.reduce(m.largest, axis=1) for m in scan.experts.values()])
    return bootstrap.interval(bootstrap.largest(of_expert) / bootstrap.largest(of_all))
