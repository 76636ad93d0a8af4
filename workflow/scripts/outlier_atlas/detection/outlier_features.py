"""The tables of the outlier features of LLM.int8()."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from outlier_atlas.criteria.llm_int8.settings import LayerShare, LlmInt8Settings, PositionShare
from outlier_atlas.detection.columns import Columns, end_columns, interval_columns
from outlier_atlas.detection.scan import Place
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.largest_sequences import LargestSequences
from outlier_atlas.statistics.magnitudes import Magnitudes
from outlier_atlas.statistics.outlier_features import SHARES, Feature, OutlierFeatures


def feature_columns(
    accumulator: OutlierFeatures | None,
    features: Sequence[Feature],
    settings: LlmInt8Settings,
    magnitudes: Mapping[Place, Magnitudes],
    bootstrap: Bootstrap,
) -> Columns:
    """The table of channels with outliers, outlier features first."""
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
    """The intervals of channels' largest |x| over all tensors."""
    largest = LargestSequences(accumulator.channels if accumulator else 0)
    for tensor in accumulator.tensors if accumulator else ():
        largest.merge(magnitudes[tensor].largest)
    mine = [feature.channel for feature in features]
    low, high = (ends[mine] for ends in largest.intervals(bootstrap))
    return end_columns("value", (low, high))


def _intervals(
    accumulator: OutlierFeatures | None, features: Sequence[Feature], bootstrap: Bootstrap
) -> Columns:
    each = [accumulator.intervals(f.channel, bootstrap) for f in features if accumulator]
    columns: Columns = {}
    for name in SHARES:
        columns |= interval_columns(name, [intervals[name] for intervals in each])
    return columns


def variant_columns(
    features: Sequence[Feature], settings: LlmInt8Settings, measured: bool
) -> Columns:
    """The table of readings of the two shares."""
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
    """Whether a channel passes both shares, as they are configured."""
    return feature.passes(
        settings.layer_share,
        settings.position_share,
        settings.layer_share_over,
        settings.position_share_by,
    )
