"""The settings of super experts."""

from __future__ import annotations

from pydantic import Field

from outlier_atlas.settings.section import CriterionSettings, PositiveFloat, Share


class SuperExpertsSettings(CriterionSettings):
    """Settings of super experts (Su et al. 2025, arXiv 2507.23279, eq. 8), which need
    `expert_out`."""

    quantile: Share = Field(
        0.995,
        description="The largest |down_proj output| of a super expert is above this quantile of "
        "those of all experts in all layers.",
    )
    ratio: PositiveFloat = Field(
        0.1,
        description="The largest |down_proj output| of a super expert is above this many times the "
        "largest of all experts.",
    )
    growth: PositiveFloat = Field(
        1.25,
        description="A super expert is in a layer in which massive activations form. Such a layer "
        "has a massive activation, and its largest |x| at the site of massive activations is at "
        "least this many times that of the measured layer before it. The first measured layer "
        "needs only the massive activation, so extraction.layers should include the layers below "
        "it.",
    )
