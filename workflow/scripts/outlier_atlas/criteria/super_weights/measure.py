"""Super weights (Yu et al. 2024): which they are, and their table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from outlier_atlas.criteria.columns import (
    Columns,
    interval_columns,
    located,
)
from outlier_atlas.criteria.experts.measure import ExpertsMeasure
from outlier_atlas.criteria.magnitudes.measure import MagnitudesMeasure
from outlier_atlas.criteria.measure import (
    Context,
    CriterionMeasure,
    Measures,
    Place,
    Taker,
)
from outlier_atlas.criteria.super_weights.settings import SuperWeightsSettings
from outlier_atlas.criteria.super_weights.tables import DESCRIPTION, SUPER_WEIGHTS
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.section import exactly, percent
from outlier_atlas.settings.sites import EXPERT_OUT, SUPER_WEIGHT_SITES
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.codes import Float32
from outlier_atlas.statistics.experts import ExpertMagnitudes
from outlier_atlas.statistics.super_weights import LargestOutput, Spike
from outlier_atlas.tables.table import Table


class SuperWeightsMeasure(CriterionMeasure):
    """Super weights; `of_layers` is empty where input and output of down projections were not
    measured."""

    description = DESCRIPTION

    def __init__(self, context: Context, others: Measures) -> None:
        super().__init__(context, others)
        layout = context.layout
        dense = {*SUPER_WEIGHT_SITES} <= {*layout.sites}
        starts = context.tokens.sequence_starts
        self.of_layers = {layer: LargestOutput(starts) for layer in layout.layers if dense}

    @classmethod
    def sites(cls, settings: DetectionSettings, measured: Collection[str]) -> tuple[str, ...]:
        dense = {*SUPER_WEIGHT_SITES} <= {*measured}
        if EXPERT_OUT not in measured:
            return SUPER_WEIGHT_SITES
        return (*SUPER_WEIGHT_SITES, EXPERT_OUT) if dense else (EXPERT_OUT,)

    @classmethod
    def definition(cls, settings: DetectionSettings, sink_tokens: int) -> str:
        block = settings.super_weights
        return (
            "At the token at which the |output| of a down projection itself (before any norm, "
            "factor or sum behind it; with its bias) is largest over all tokens and channels, the "
            f"largest |input| is taken. Where both are > {exactly(block.threshold)}, the weight W "
            "in the row of the output's channel and the column of the input's is a super weight "
            f"if it makes at least {percent(block.min_share)} % of that output: W times input over "
            "output, with W in the dtype that the run computes in (Yu et al. 2024, arXiv "
            "2411.07191; the share is not in the paper, whose super weights make most of the "
            "output). Sites: mlp_hidden and down_proj_out, and expert_out for each routed expert; "
            "shared experts are not searched."
        )

    def takers(self) -> Iterable[tuple[Place, Taker]]:
        into, out = SUPER_WEIGHT_SITES
        for layer, down in self.of_layers.items():
            yield (into, layer), down.take_input
            yield (out, layer), down.take_output

    @cached_property
    def found(self) -> list[SuperWeight]:
        """The rows of the table."""
        return _found(self.of_layers, self.others.of(ExpertsMeasure).of_layers, self.context)

    def findings(self) -> int:
        return sum(weight.passes is True for weight in self.found)

    def tables(self) -> Iterator[tuple[Table, Columns]]:
        of_sequences = [
            self.others.of(MagnitudesMeasure).of_places[SUPER_WEIGHT_SITES[1], w.layer].of_sequences
            if w.expert is None
            else self.others.of(ExpertsMeasure).of_layers[w.layer].largest[:, w.expert]
            for w in self.found
        ]
        columns = _weights(self.found, of_sequences, self.context.tokens, self.context.bootstrap)
        yield SUPER_WEIGHTS, columns


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


def _found(
    down_projections: Mapping[int, LargestOutput],
    of_layers: Mapping[int, ExpertMagnitudes],
    context: Context,
) -> list[SuperWeight]:
    """One for each layer with a down projection of its own, and for each routed expert whose
    largest input and output are above the threshold; by layer and expert."""
    settings = context.settings.super_weights
    found: list[tuple[int, int | None, Spike]] = [
        (layer, None, down.spike) for layer, down in down_projections.items() if down.spike
    ]
    for layer, experts in of_layers.items():
        each = ((expert, experts.spike(expert)) for expert in range(experts.experts))
        found += [
            (layer, expert, spike)
            for expert, spike in each
            if spike and spike.above(settings.threshold)
        ]
    found.sort(key=lambda one: (one[0], -1 if one[1] is None else one[1]))
    places = [(layer, expert, spike.row, spike.column) for layer, expert, spike in found]
    weights = context.weights_of(places) if places else []
    return [
        _super_weight(*one, weight, settings, context.layout.dtype)
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
    """A row of the table.

    Args:
        dtype: that the run computes in: the weight is rounded to it.
    """
    share: float | None = None
    passes: bool | None = spike.above(settings.threshold)
    if weight is not None and spike.output:
        held = float(torch.tensor(weight).to(getattr(torch, dtype)))
        share = held * spike.input / spike.output
    if passes:
        passes = None if share is None else share >= settings.min_share
    return SuperWeight(layer, expert, spike, weight, share, passes)


def _weights(
    found: Sequence[SuperWeight],
    of_sequences: Sequence[Float32],
    tokens: TokenStore,
    bootstrap: Bootstrap,
) -> Columns:
    """The table of super weights.

    Args:
        of_sequences: the largest |output| of each sequence.
    """
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
