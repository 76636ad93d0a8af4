"""Ablation of all outlier features together, in all layers."""

from __future__ import annotations

from collections.abc import Iterator

from outlier_atlas import tables
from outlier_atlas.ablation.target import Channels, Target, TargetContext
from outlier_atlas.criteria.llm_int8.tables import DESCRIPTION, LLM_INT8_FEATURES
from outlier_atlas.criteria.tables import CRITERIA


class OutlierFeaturesTarget(Target):
    """The set of all outlier features, at the sites of the criterion."""

    key = "outlier_features"

    def channels(self, context: TargetContext) -> Iterator[Channels]:
        features = tables.read(context.tables, LLM_INT8_FEATURES).to_pylist()
        channels = sorted(row["channel"] for row in features if row["outlier_feature"])
        criteria = tables.read(context.tables, CRITERIA).to_pylist()
        own = next(row for row in criteria if row["criterion"] == DESCRIPTION.name)
        if channels:
            layers, sites = range(context.architecture.layers), own["sites"].split()
            places = tuple((site, layer) for layer in layers for site in sites)
            yield Channels("outlier_features", places, tuple(channels))
