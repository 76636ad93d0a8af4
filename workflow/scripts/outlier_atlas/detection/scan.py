"""One pass over a run's summaries, for all accumulators."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from outlier_atlas.detection.criteria import (
    LLM_INT8,
    MASSIVE_ACTIVATIONS,
    SYSTEMATIC_OUTLIERS,
    TOKEN_OUTLIERS,
    Criterion,
)
from outlier_atlas.detection.tiles import Source
from outlier_atlas.progress import progress
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.sites import CHANNEL_SITES, EXPERT_OUT, SUPER_WEIGHT_SITES
from outlier_atlas.statistics.experts import ExpertMagnitudes
from outlier_atlas.statistics.magnitudes import Magnitudes
from outlier_atlas.statistics.massive import MassiveActivation, massive_activations
from outlier_atlas.statistics.measures import LayerMeasures, QuantizationErrors
from outlier_atlas.statistics.norms import TokenNorms
from outlier_atlas.statistics.outlier_features import OutlierFeatures
from outlier_atlas.statistics.sequences import BySequence, Found, WholeSequence
from outlier_atlas.statistics.super_weights import LargestOutput
from outlier_atlas.statistics.tokens import TokenOutlier, systematic_outliers, token_outliers
from outlier_atlas.store.layout import Layout

Place = tuple[str, int]
"""Site and layer."""


@dataclass
class Scan:
    """The accumulators of a run.

    Attributes:
        magnitudes: of every site with channels, and layer.
        measures: likewise.
        quantization: of the sites that are asked for, and layer.
        outlier_features: None where the criterion was not measured.
        massive: per layer; empty where the criterion was not measured.
        systematic: likewise.
        token_outliers: likewise.
        norms: likewise.
        experts: per layer; empty where `expert_out` was not measured.
        down_projections: per layer; empty where their input and output were not measured.
    """

    magnitudes: dict[Place, Magnitudes]
    measures: dict[Place, LayerMeasures]
    quantization: dict[Place, QuantizationErrors]
    outlier_features: OutlierFeatures | None = None
    massive: dict[int, BySequence[MassiveActivation]] = field(default_factory=dict)
    systematic: dict[int, BySequence[TokenOutlier]] = field(default_factory=dict)
    token_outliers: dict[int, BySequence[TokenOutlier]] = field(default_factory=dict)
    norms: dict[int, TokenNorms] = field(default_factory=dict)
    experts: dict[int, ExpertMagnitudes] = field(default_factory=dict)
    down_projections: dict[int, LargestOutput] = field(default_factory=dict)


def scan(
    source: Source,
    settings: DetectionSettings,
    criteria: Mapping[str, Criterion],
    threads: int,
) -> Scan:
    """Take all summaries, chunk by chunk.

    Memory is a few chunks and the accumulators, however many tokens there are.

    Raises:
        ValueError: the store or a summary is damaged, or the sites of a criterion do not fit
            together.
    """
    layout = source.layout
    result = _accumulators(source, settings, criteria)
    takers = _takers(result, settings, criteria)
    last = 0
    total = layout.chunks * len(takers)
    with progress(total, " chunks", "detecting") as bar:
        for chunk, target, found in source.all(threads):
            if chunk != last and result.outlier_features:
                result.outlier_features.close()
            last = chunk
            place = target.site, target.layer
            _take(takers[place], found.tiles)
            for summary in found.quantization:
                result.quantization[place].update(summary)
            bar.update()
    if result.outlier_features:
        result.outlier_features.close()
    return result


def _take(takers: list[Callable[[Any], None]], tiles: Sequence[Any]) -> None:
    for summary in tiles:
        for take in takers:
            take(summary)


def _takers(
    result: Scan, settings: DetectionSettings, criteria: Mapping[str, Criterion]
) -> dict[Place, list[Callable[[Any], None]]]:
    """Of each site and layer what takes its summaries."""
    takers: dict[Place, list[Callable[[Any], None]]] = defaultdict(list)
    for place, magnitudes in result.magnitudes.items():
        takers[place] += [magnitudes.update, result.measures[place].update]
        if result.outlier_features and place[0] in criteria[LLM_INT8].sites:
            takers[place].append(partial(result.outlier_features.update, place))
    for site, by_layer in (
        (settings.massive_activations.site, result.massive),
        (settings.systematic_outliers.site, result.systematic),
        (settings.token_outliers.site, result.token_outliers),
        (settings.token_norms.site, result.norms),
        (EXPERT_OUT, result.experts),
    ):
        for layer, accumulator in by_layer.items():
            takers[site, layer].append(accumulator.update)
    into, out = SUPER_WEIGHT_SITES
    for layer, down in result.down_projections.items():
        takers[into, layer].append(down.take_input)
        takers[out, layer].append(down.take_output)
    return takers


def _accumulators(
    source: Source, settings: DetectionSettings, criteria: Mapping[str, Criterion]
) -> Scan:
    layout, starts = source.layout, source.tokens.sequence_starts
    sites = [site for site in layout.sites if site in CHANNEL_SITES]
    places = [(site, layer) for site in sites for layer in layout.layers]
    sequences = len(starts) - 1
    channels = layout.sites
    rounded = [place for place in places if place[0] in settings.quantization_error.sites]
    result = Scan(
        {place: Magnitudes(channels[place[0]], sequences) for place in places},
        {place: LayerMeasures(channels[place[0]], sequences) for place in places},
        {place: QuantizationErrors(sequences) for place in rounded},
    )
    if EXPERT_OUT in layout.sites:
        result.experts = {
            layer: ExpertMagnitudes(layout.experts, sequences) for layer in layout.layers
        }
    if {*SUPER_WEIGHT_SITES} <= {*layout.sites}:
        result.down_projections = {layer: LargestOutput(starts) for layer in layout.layers}
    if criteria[LLM_INT8].measured:
        tensors = [place for place in places if place[0] in criteria[LLM_INT8].sites]
        common = _common_channels(layout, criteria[LLM_INT8])
        result.outlier_features = OutlierFeatures(
            tensors, common, settings.llm_int8.threshold, sequences
        )

    def by_sequence(
        name: str, decide: Callable[[int], Callable[[WholeSequence], Iterable[Found]]]
    ) -> dict[int, BySequence[Found]]:
        layers = layout.layers if criteria[name].measured else ()
        return {layer: BySequence(starts, decide(layer)) for layer in layers}

    massive, systematic = settings.massive_activations, settings.systematic_outliers
    result.massive = by_sequence(
        MASSIVE_ACTIVATIONS,
        lambda layer: partial(
            massive_activations,
            absolute=massive.absolute, ratio=massive.ratio, median=massive.median,
            values_of=source.values_of(massive.site, layer),
        ),
    )  # fmt: skip
    result.systematic = by_sequence(
        SYSTEMATIC_OUTLIERS, lambda _: partial(systematic_outliers, ratio=systematic.ratio)
    )
    result.token_outliers = by_sequence(
        TOKEN_OUTLIERS, lambda _: partial(token_outliers, ratio=settings.token_outliers.ratio)
    )
    if settings.token_norms.site in layout.sites:
        result.norms = {layer: TokenNorms(settings.token_norms.top) for layer in layout.layers}
    return result


def _common_channels(layout: Layout, criterion: Criterion) -> int:
    channels = {site: layout.sites[site] for site in criterion.sites}
    if len(set(channels.values())) > 1:
        shown = ", ".join(f"{site} has {count}" for site, count in channels.items())
        raise ValueError(
            f"detection.{criterion.name}.sites: they must have the same channels, and {shown}"
        )
    return next(iter(channels.values()))
