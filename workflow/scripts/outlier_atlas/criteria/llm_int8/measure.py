"""LLM.int8() outlier features (Dettmers et al. 2022): definition and tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import get_args

from outlier_atlas.criteria.columns import (
    Columns,
    end_columns,
    interval_columns,
)
from outlier_atlas.criteria.llm_int8.accumulator import Feature, OutlierFeatures
from outlier_atlas.criteria.llm_int8.settings import LayerShare, LlmInt8Settings, PositionShare
from outlier_atlas.criteria.llm_int8.tables import (
    DESCRIPTION,
    LLM_INT8_FEATURES,
    LLM_INT8_VARIANTS,
    SHARES,
)
from outlier_atlas.criteria.magnitudes.measure import MagnitudesMeasure
from outlier_atlas.criteria.measure import (
    Context,
    Criterion,
    CriterionMeasure,
    Measures,
    Place,
    Taker,
)
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.section import exactly, percent
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.largest_sequences import LargestSequences
from outlier_atlas.statistics.magnitudes import Magnitudes
from outlier_atlas.store.layout import Layout
from outlier_atlas.tables.table import Table


class LlmInt8Measure(CriterionMeasure):
    """Outlier features of LLM.int8().

    Attributes:
        accumulator: accumulator of all tensors; None if a site was not measured.
    """

    description = DESCRIPTION
    any_site = True

    def __init__(self, context: Context, others: Measures) -> None:
        super().__init__(context, others)
        self.accumulator: OutlierFeatures | None = None
        if self.criterion.measured:
            tensors = [place for place in context.places if place[0] in self.criterion.sites]
            self.accumulator = OutlierFeatures(
                tensors,
                _common_channels(context.layout, self.criterion),
                context.settings.llm_int8.threshold,
                context.sequences,
            )

    @classmethod
    def sites(cls, settings: DetectionSettings, measured: Collection[str]) -> tuple[str, ...]:
        return tuple(settings.llm_int8.sites)

    @classmethod
    def definition(cls, settings: DetectionSettings, sink_tokens: int) -> str:
        block = settings.llm_int8
        over = {
            "layers": "the measured layers (at any of the sites)",
            "tensors": "the measured tensors (layer and site)",
        }[block.layer_share_over]
        by = {
            "union": "counted where any tensor has one",
            "mean": "averaged over the affected tensors",
            "max": "in the tensor that has most",
        }[block.position_share_by]
        return (
            f"A channel of {' and '.join(block.sites)} is an outlier feature if |x| >= "
            f"{exactly(block.threshold)} in at least {percent(block.layer_share)} % of {over} and "
            f"on no less than {percent(block.position_share)} % of the positions (sequence, "
            f"position), {by}, of layers and positions that have a finite value (Dettmers et al. "
            "2022, arXiv 2208.07339)."
        )

    def takers(self) -> Iterable[tuple[Place, Taker]]:
        if accumulator := self.accumulator:
            for place in accumulator.tensors:
                yield place, partial(accumulator.update, place)

    def end_chunk(self) -> None:
        if self.accumulator:
            self.accumulator.close()

    @cached_property
    def features(self) -> list[Feature]:
        """Every channel with at least one outlier."""
        return self.accumulator.features() if self.accumulator else []

    def findings(self) -> int:
        block = self.context.settings.llm_int8
        return sum(is_outlier_feature(feature, block) for feature in self.features)

    def tables(self) -> Iterator[tuple[Table, Columns]]:
        block, bootstrap = self.context.settings.llm_int8, self.context.bootstrap
        magnitudes = self.others.of(MagnitudesMeasure).of_places
        yield (
            LLM_INT8_FEATURES,
            _features(self.accumulator, self.features, block, magnitudes, bootstrap),
        )
        yield LLM_INT8_VARIANTS, _variants(self.features, block, self.criterion.measured)


def _common_channels(layout: Layout, criterion: Criterion) -> int:
    """Return the number of channels, which all sites of the criterion must share.

    Raises:
        ValueError: the sites have different numbers of channels.
    """
    channels = {site: layout.sites[site] for site in criterion.sites}
    if len(set(channels.values())) > 1:
        shown = ", ".join(f"{site} has {count}" for site, count in channels.items())
        raise ValueError(
            f"detection.{criterion.name}.sites: they must have the same channels, and {shown}"
        )
    return next(iter(channels.values()))


def _features(
    accumulator: OutlierFeatures | None,
    features: Sequence[Feature],
    settings: LlmInt8Settings,
    magnitudes: Mapping[Place, Magnitudes],
    bootstrap: Bootstrap,
) -> Columns:
    """Return the columns of the table of channels with outliers, outlier features first."""
    by, over = settings.position_share_by, settings.layer_share_over
    ordered = sorted(
        features,
        key=lambda f: (
            not is_outlier_feature(f, settings),
            -f.layer_share[over],
            -f.position_share[by],
            f.channel,
        ),
    )
    quartiles = ("quartile1", "median", "quartile3")
    return {
        "channel": [f.channel for f in ordered],
        "outlier_feature": [is_outlier_feature(f, settings) for f in ordered],
        "layers": [f.layers for f in ordered],
        "tensors": [f.tensors for f in ordered],
        **{
            f"layer_share_{name}": [f.layer_share[name] for f in ordered]
            for name in get_args(LayerShare)
        },
        **{
            f"position_share_{name}": [f.position_share[name] for f in ordered]
            for name in get_args(PositionShare)
        },
        "outlier_values": [f.outlier_values for f in ordered],
        "positive_share": [f.positive_share for f in ordered],
        "sidedness": ["one-sided" if f.one_sided else "two-sided" for f in ordered],
        **{name: [f.quartiles[i] for f in ordered] for i, name in enumerate(quartiles)},
        "value": [f.value for f in ordered],
        **_intervals(accumulator, ordered, bootstrap),
        **_of_values(accumulator, ordered, magnitudes, bootstrap),
    }


def _of_values(
    accumulator: OutlierFeatures | None,
    features: Sequence[Feature],
    magnitudes: Mapping[Place, Magnitudes],
    bootstrap: Bootstrap,
) -> Columns:
    """Return the columns of the intervals of channels' largest |x| over all tensors."""
    largest = LargestSequences(accumulator.channels if accumulator else 0)
    for tensor in accumulator.tensors if accumulator else ():
        largest.merge(magnitudes[tensor].largest)
    own_channels = [feature.channel for feature in features]
    low, high = (ends[own_channels] for ends in largest.intervals(bootstrap))
    return end_columns("value", (low, high))


def _intervals(
    accumulator: OutlierFeatures | None, features: Sequence[Feature], bootstrap: Bootstrap
) -> Columns:
    each = [accumulator.intervals(f.channel, bootstrap) for f in features if accumulator]
    columns: Columns = {}
    for name in SHARES:
        columns |= interval_columns(name, [intervals[name] for intervals in each])
    return columns


def _variants(features: Sequence[Feature], settings: LlmInt8Settings, measured: bool) -> Columns:
    """Return the columns of the table of readings of the two shares."""
    configured = (settings.layer_share_over, settings.position_share_by)
    readings = [
        (over, by) for over in get_args(LayerShare) for by in get_args(PositionShare) if measured
    ]
    passing = [
        [
            feature.channel
            for feature in features
            if feature.passes(settings.layer_share, settings.position_share, over, by)
        ]
        for over, by in readings
    ]
    return {
        "layer_share_over": [over for over, _ in readings],
        "position_share_by": [by for _, by in readings],
        "configured": [reading == configured for reading in readings],
        "outlier_features": [len(channels) for channels in passing],
        "channels": [" ".join(map(str, channels)) for channels in passing],
    }


def is_outlier_feature(feature: Feature, settings: LlmInt8Settings) -> bool:
    """Return whether a channel passes both shares under the configured reading."""
    return feature.passes(
        settings.layer_share,
        settings.position_share,
        settings.layer_share_over,
        settings.position_share_by,
    )
