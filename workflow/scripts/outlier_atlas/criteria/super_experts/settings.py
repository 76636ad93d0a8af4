"""The settings of super experts."""

from __future__ import annotations

from pydantic import Field

from outlier_atlas.settings.section import CriterionSettings, PositiveFloat, Share


class SuperExpertsSettings(CriterionSettings):
    """Super experts of Su et al. 2025 (arXiv 2507.23279, eq. 8), from `expert_out`."""

    quantile: Share = Field(
        0.995,
        description="An expert's largest |down_proj output| must be above this quantile of those "
        "of all experts of all layers …",
    )
    ratio: PositiveFloat = Field(0.1, description="… and above this many times the largest …")
    growth: PositiveFloat = Field(
        1.25,
        description="… in a layer in which massive activations form: one that has a massive "
        "activation, and whose largest |x| at the site of massive activations is at least this "
        "many times that of the measured layer before it. The first measured layer needs the "
        "massive activation alone: name the layers below it, too, in extraction.layers.",
    )
