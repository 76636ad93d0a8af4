"""One pass over a run's store: every chunk is read once, for all accumulators."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.detection.criteria import LLM_INT8, MASSIVE_ACTIVATIONS, Criterion
from outlier_atlas.progress import progress
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.sites import CHANNEL_SITES, EXPERT_OUT
from outlier_atlas.statistics.experts import ExpertMagnitudes, RoutedTile
from outlier_atlas.statistics.magnitudes import Magnitudes
from outlier_atlas.statistics.massive import MassiveActivations
from outlier_atlas.statistics.outlier_features import OutlierFeatures
from outlier_atlas.statistics.tile import Tile
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.layout import Layout, Target

log = logging.getLogger(__name__)


@dataclass
class Scan:
    """The accumulators of a run.

    Attributes:
        magnitudes: of every site with channels, and layer.
        outlier_features: None where the criterion was not measured.
        massive: per layer; empty where the criterion was not measured.
        experts: per layer; empty where `expert_out` was not measured.
    """

    magnitudes: dict[Target, Magnitudes]
    outlier_features: OutlierFeatures | None = None
    massive: dict[int, MassiveActivations] = field(default_factory=dict)
    experts: dict[int, ExpertMagnitudes] = field(default_factory=dict)


def scan(
    run: Path,
    layout: Layout,
    tokens: TokenStore,
    settings: DetectionSettings,
    criteria: Mapping[str, Criterion],
    threads: int,
) -> Scan:
    """Read the store, chunk by chunk of tokens and all tensors of a chunk together.

    Memory is a few chunks and the accumulators, however many tokens there are.

    Raises:
        ValueError: the store is damaged, or the sites of a criterion do not fit together.
    """
    result = _accumulators(layout, tokens, settings, criteria)
    int8_sites = criteria[LLM_INT8].sites
    massive_site = criteria[MASSIVE_ACTIVATIONS].sites[0]
    targets = [*result.magnitudes, *(Target(EXPERT_OUT, layer) for layer in result.experts)]
    with progress(layout.chunks * len(targets), " chunks", "detecting") as bar:
        for target, tile in _tiles(run, layout, targets, threads):
            if tile is None:
                if result.outlier_features:
                    result.outlier_features.close()
                continue
            bar.update()
            if target.array == EXPERT_OUT:
                result.experts[target.layer].update(RoutedTile.of(tile.values, tile.start))
                continue
            result.magnitudes[target].update(tile)
            if result.outlier_features and target.array in int8_sites:
                result.outlier_features.update((target.array, target.layer), tile)
            if result.massive and target.array == massive_site:
                result.massive[target.layer].update(tile)
    return result


def _accumulators(
    layout: Layout,
    tokens: TokenStore,
    settings: DetectionSettings,
    criteria: Mapping[str, Criterion],
) -> Scan:
    sites = [site for site in layout.sites if site in CHANNEL_SITES]
    targets = [Target(site, layer) for site in sites for layer in layout.layers]
    result = Scan({target: Magnitudes(layout.channels(target)) for target in targets})
    if EXPERT_OUT in layout.sites:
        result.experts = {layer: ExpertMagnitudes(layout.experts) for layer in layout.layers}
    if criteria[LLM_INT8].measured:
        tensors = [(t.array, t.layer) for t in targets if t.array in criteria[LLM_INT8].sites]
        result.outlier_features = OutlierFeatures(
            tensors, _common_channels(layout, criteria[LLM_INT8]), settings.llm_int8.threshold
        )
    if criteria[MASSIVE_ACTIVATIONS].measured:
        massive = settings.massive_activations
        result.massive = {
            layer: MassiveActivations(
                tokens.sequence_starts, massive.absolute, massive.ratio, massive.median
            )
            for layer in layout.layers
        }
    return result


def _common_channels(layout: Layout, criterion: Criterion) -> int:
    channels = {site: layout.sites[site] for site in criterion.sites}
    if len(set(channels.values())) > 1:
        shown = ", ".join(f"{site} has {count}" for site, count in channels.items())
        raise ValueError(
            f"detection.{criterion.name}.sites: they must have the same channels, and {shown}"
        )
    return next(iter(channels.values()))


def _tiles(
    run: Path, layout: Layout, targets: list[Target], threads: int
) -> Iterator[tuple[Target, Tile | None]]:
    """Every tile, chunk by chunk; (a target, None) after the last of a chunk.

    A few are read ahead while one is looked at.
    """
    arrays = Arrays(run, layout)

    def read(target: Target, chunk: int) -> Tile:
        start, stop = layout.chunk_range(chunk)
        return Tile(arrays.read(target, start, stop), start)

    order = [(target, chunk) for chunk in range(layout.chunks) for target in targets]
    with ThreadPoolExecutor(threads) as readers:
        ahead = [readers.submit(read, *place) for place in order[:threads]]
        for index, (target, _) in enumerate(order):
            tile = ahead.pop(0).result()
            ahead += [readers.submit(read, *place) for place in order[index + threads :][:1]]
            yield target, tile
            if (index + 1) % len(targets) == 0:
                yield target, None
