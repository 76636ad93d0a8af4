"""The registry of ablation targets."""

from __future__ import annotations

from outlier_atlas.ablation.target import Target
from outlier_atlas.criteria.llm_int8.targets import OutlierFeaturesTarget
from outlier_atlas.criteria.massive_activations.targets import (
    MassiveActivationsTarget,
    MassiveChannelsTarget,
)
from outlier_atlas.criteria.super_experts.targets import SuperExpertsTarget
from outlier_atlas.criteria.super_weights.targets import SuperWeightsTarget

TARGETS: tuple[Target, ...] = (
    SuperWeightsTarget(),
    SuperExpertsTarget(),
    MassiveActivationsTarget(),
    OutlierFeaturesTarget(),
    MassiveChannelsTarget(),
)
"""All kinds of targets, in the order of the table `ablations`.

`settings/ablation.py` has the names that a configuration may use.
"""
