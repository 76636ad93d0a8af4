"""Super weights (Yu et al. 2024): definition and table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

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
    """Super weights of down projections.

    Attributes:
        of_layers: accumulator of each layer; empty unless input and output of the down projections
            were measured.
    """

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
    def candidates(self) -> list[SuperWeight]:
        """The weights in the rows of the table."""
        return _candidates(self.of_layers, self.others.of(ExpertsMeasure).of_layers, self.context)

    def findings(self) -> int:
        return sum(weight.passes is True for weight in self.candidates)

    def tables(self) -> Iterator[tuple[Table, Columns]]:
        of_sequences = [
            self.others.of(MagnitudesMeasure).of_places[SUPER_WEIGHT_SITES[1], w.layer].of_sequences
            if w.expert is None
            else self.others.of(ExpertsMeasure).of_layers[w.layer].largest[:, w.expert]
            for w in self.candidates
        ]
        columns = _weights(
            self.candidates, of_sequences, self.context.tokens, self.context.bootstrap
        )
        yield SUPER_WEIGHTS, columns


@dataclass(frozen=True)
class SuperWeight:
    """The largest output of a down projection, and the weight between it and the largest input.

    Attributes:
        layer: layer of the weight.
        expert: the routed expert; None for the dense down projection of the layer.
        spike: the largest output and the input, with their places.
        weight: the weight in the checkpoint; None if it is not known.
        share: share of the output that this weight contributes; None if it is not known.
        passes: whether the weight is a super weight; None if only the share is not known and all
            other conditions hold.
    """

    layer: int
    expert: int | None
    spike: Spike
    weight: float | None
    share: float | None
    passes: bool | None


def _candidates(
    down_projections: Mapping[int, LargestOutput],
    of_layers: Mapping[int, ExpertMagnitudes],
    context: Context,
) -> list[SuperWeight]:
    """Return the weights that the table lists, ordered by layer and expert.

    They are the weight of each dense down projection, and the weight of each routed expert with
    largest input and output above the threshold.
    """
    settings = context.settings.super_weights
    spikes: list[tuple[int, int | None, Spike]] = [
        (layer, None, down.spike) for layer, down in down_projections.items() if down.spike
    ]
    for layer, experts in of_layers.items():
        each = ((expert, experts.spike(expert)) for expert in range(experts.experts))
        spikes += [
            (layer, expert, spike)
            for expert, spike in each
            if spike and spike.above(settings.threshold)
        ]
    spikes.sort(key=lambda place: (place[0], -1 if place[1] is None else place[1]))
    places = [(layer, expert, spike.row, spike.column) for layer, expert, spike in spikes]
    weights = context.weights_of(places) if places else []
    return [
        _super_weight(*candidate, weight, settings, context.layout.dtype)
        for candidate, weight in zip(spikes, weights, strict=True)
    ]


def _super_weight(
    layer: int,
    expert: int | None,
    spike: Spike,
    weight: float | None,
    settings: SuperWeightsSettings,
    dtype: str,
) -> SuperWeight:
    """Return the weight of a row of the table.

    Args:
        layer: layer of the weight.
        expert: the routed expert, or None.
        spike: the largest output and the input.
        weight: the weight in the checkpoint, or None.
        settings: the block `detection.super_weights`.
        dtype: dtype of the computation, to which the weight is rounded.
    """
    share: float | None = None
    passes: bool | None = spike.above(settings.threshold)
    if weight is not None and spike.output:
        import torch  # takes seconds; the weights were read with it

        rounded = float(torch.tensor(weight).to(getattr(torch, dtype)))
        share = rounded * spike.input / spike.output
    if passes:
        passes = None if share is None else share >= settings.min_share
    return SuperWeight(layer, expert, spike, weight, share, passes)


def _weights(
    candidates: Sequence[SuperWeight],
    of_sequences: Sequence[Float32],
    tokens: TokenStore,
    bootstrap: Bootstrap,
) -> Columns:
    """Return the columns of the table of super weights.

    Args:
        candidates: the weights in the rows of the table.
        of_sequences: largest |output| of each sequence, for each weight.
        tokens: the token store.
        bootstrap: the draws of the intervals.
    """
    return {
        "layer": [w.layer for w in candidates],
        "expert": [w.expert for w in candidates],
        "super_weight": [w.passes for w in candidates],
        "row": [w.spike.row for w in candidates],
        "column": [w.spike.column for w in candidates],
        "weight": [w.weight for w in candidates],
        "input": [w.spike.input for w in candidates],
        "output": [w.spike.output for w in candidates],
        "share": [w.share for w in candidates],
        **located(tokens, [w.spike.token for w in candidates]),
        **interval_columns("output", [bootstrap.maxima(each) for each in of_sequences]),
    }
