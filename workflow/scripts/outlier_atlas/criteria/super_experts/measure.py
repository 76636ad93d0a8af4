"""Super experts (Su et al. 2025): definition and table."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from outlier_atlas.criteria.columns import (
    Columns,
    interval_columns,
    located,
)
from outlier_atlas.criteria.experts.measure import ExpertsMeasure
from outlier_atlas.criteria.magnitudes.measure import MagnitudesMeasure
from outlier_atlas.criteria.massive_activations.measure import (
    MassiveActivation,
    MassiveActivationsMeasure,
)
from outlier_atlas.criteria.measure import (
    CriterionMeasure,
    Place,
)
from outlier_atlas.criteria.super_experts.tables import DESCRIPTION, SUPER_EXPERTS
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.section import exactly, percent
from outlier_atlas.settings.sites import EXPERT_OUT
from outlier_atlas.statistics.bootstrap import Bootstrap, Interval
from outlier_atlas.statistics.codes import Float32
from outlier_atlas.statistics.experts import ExpertMagnitudes
from outlier_atlas.statistics.magnitudes import Magnitudes
from outlier_atlas.statistics.sequences import BySequence
from outlier_atlas.tables.table import Table


class SuperExpertsMeasure(CriterionMeasure):
    """Super experts, derived from the measures of experts and of massive activations."""

    description = DESCRIPTION

    @classmethod
    def sites(cls, settings: DetectionSettings, measured: Collection[str]) -> tuple[str, ...]:
        return (EXPERT_OUT, settings.massive_activations.site)

    @classmethod
    def definition(cls, settings: DetectionSettings, sink_tokens: int) -> str:
        block, site = settings.super_experts, settings.massive_activations.site
        return (
            "An expert is a super expert if its largest |down_proj output| over all tokens routed "
            f"to it is above the {percent(block.quantile)} % quantile (linear interpolation) of "
            f"those of all routed experts that saw a token, above {exactly(block.ratio)} times the "
            "largest of them, and its layer is one in which massive activations form: it has a "
            f"massive activation, and the largest |x| of {site} is at least "
            f"{exactly(block.growth)} times that of the measured layer before it, where one is (Su "
            "et al. 2025, arXiv 2507.23279, eq. 8; the last condition is our reading of it)."
        )

    @cached_property
    def super_experts(self) -> list[SuperExpert]:
        """The super experts, ordered by layer and expert."""
        if not self.criterion.measured:
            return []
        return super_experts(
            self.others.of(ExpertsMeasure).of_layers,
            self.others.of(MassiveActivationsMeasure).of_layers,
            self.others.of(MagnitudesMeasure).of_places,
            self.context.settings,
        )

    def findings(self) -> int:
        return len(self.super_experts)

    def tables(self) -> Iterator[tuple[Table, Columns]]:
        experts = self.others.of(ExpertsMeasure).of_layers
        yield (
            SUPER_EXPERTS,
            _experts(self.super_experts, experts, self.context.tokens, self.context.bootstrap),
        )


@dataclass(frozen=True)
class SuperExpert:
    """A super expert, with the numbers of the criterion.

    Attributes:
        layer: layer of the expert.
        expert: index of the expert in the layer.
        value: output of the down projection with the largest magnitude, with its sign.
        channel: channel of that output.
        token: index of the token of that output.
        quantile: quantile over all experts that the output exceeds.
        largest_share: |value| / largest |value| of all experts.
        growth: largest |x| of the residual stream / largest |x| at the previous measured layer;
            None without such a layer.
    """

    layer: int
    expert: int
    value: float
    channel: int
    token: int
    quantile: float
    largest_share: float
    growth: float | None


def super_experts(
    experts: Mapping[int, ExpertMagnitudes],
    massive: Mapping[int, BySequence[MassiveActivation]],
    magnitudes: Mapping[Place, Magnitudes],
    settings: DetectionSettings,
) -> list[SuperExpert]:
    """Return the super experts, ordered by layer and expert."""
    # In float32, a quantile between two neighbouring values would be rounded to one of them.
    values = {layer: np.abs(each.values.astype(np.float64)) for layer, each in experts.items()}
    known = np.concatenate([v[~np.isnan(v)] for v in values.values()])
    if not len(known):
        return []
    criterion = settings.super_experts
    quantile, largest = float(np.quantile(known, criterion.quantile)), float(known.max())
    selected = []
    for layer, growth in _forming(massive, magnitudes, settings).items():
        high = (values[layer] > quantile) & (values[layer] > criterion.ratio * largest)
        each = experts[layer]
        selected += [
            SuperExpert(
                layer, expert, float(each.values[expert]), int(each.channels[expert]),
                int(each.tokens[expert]), quantile, float(values[layer][expert]) / largest, growth,
            )
            for expert in np.flatnonzero(high).tolist()
        ]  # fmt: skip
    return selected


def _forming(
    massive: Mapping[int, BySequence[MassiveActivation]],
    magnitudes: Mapping[Place, Magnitudes],
    settings: DetectionSettings,
) -> dict[int, float | None]:
    """Return the layers in which massive activations form, with the growth of the largest |x|."""
    forming: dict[int, float | None] = {}
    before: float | None = None
    for layer, of_layer in sorted(massive.items()):
        top = magnitudes[settings.massive_activations.site, layer].top
        if not top:  # no finite value: the next layer has no layer to be compared with
            before = None
            continue
        largest = top[0]
        growth = None if before is None else largest / before if before else float("inf")
        if of_layer.results() and (growth is None or growth >= settings.super_experts.growth):
            forming[layer] = growth
        before = largest
    return forming


def _experts(
    selected: Sequence[SuperExpert],
    experts: Mapping[int, ExpertMagnitudes],
    tokens: TokenStore,
    bootstrap: Bootstrap,
) -> Columns:
    """Return the columns of the table of super experts."""
    largest = [experts[e.layer].largest[:, e.expert] for e in selected]
    shares = [_largest_share(of_expert, experts, bootstrap) for of_expert in largest]
    return {
        "layer": [e.layer for e in selected],
        "expert": [e.expert for e in selected],
        "channel": [e.channel for e in selected],
        **located(tokens, [e.token for e in selected]),
        "value": [e.value for e in selected],
        "quantile": [e.quantile for e in selected],
        "largest_share": [e.largest_share for e in selected],
        "growth": [e.growth for e in selected],
        **interval_columns("value", [bootstrap.maxima(of_expert) for of_expert in largest]),
        **interval_columns("largest_share", shares),
    }


def _largest_share(
    of_expert: Float32, experts: Mapping[int, ExpertMagnitudes], bootstrap: Bootstrap
) -> Interval:
    """Return the interval of an expert's share of the largest output of all experts.

    Both numbers of a share are from the same draw.
    """
    of_all = np.fmax.reduce([np.fmax.reduce(m.largest, axis=1) for m in experts.values()])
    return bootstrap.interval(bootstrap.largest(of_expert) / bootstrap.largest(of_all))
