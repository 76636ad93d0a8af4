"""The settings of super weights."""

from __future__ import annotations

from pydantic import Field

from outlier_atlas.settings.section import CriterionSettings, PositiveFloat, Share


class SuperWeightsSettings(CriterionSettings):
    """Settings of super weights (Yu et al. 2024, arXiv 2411.07191).

    They need `mlp_hidden` and `down_proj_out`, or `expert_out`.
    """

    threshold: PositiveFloat = Field(
        50.0,
        description="For a super weight, the largest |output| of a down projection and the largest "
        "|input| at the same token are both above this.",
    )
    min_share: Share = Field(
        0.5,
        description="Least share of the output that a super weight contributes: weight times input "
        "over output.",
    )
