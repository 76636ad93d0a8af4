"""The settings of super weights."""

from __future__ import annotations

from pydantic import Field

from outlier_atlas.settings.section import CriterionSettings, PositiveFloat, Share


class SuperWeightsSettings(CriterionSettings):
    """Super weights of Yu et al. 2024 (arXiv 2411.07191), from `mlp_hidden` and `down_proj_out`, or
    `expert_out`."""

    threshold: PositiveFloat = Field(
        50.0,
        description="At the token of the largest |output| of a down projection, that output and "
        "the largest |input| must both be above this.",
    )
    min_share: Share = Field(
        0.5,
        description="The weight between them must make at least this share of the output: weight "
        "times input over output.",
    )
