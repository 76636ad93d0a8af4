"""The settings of systematic outliers."""

from __future__ import annotations

from pydantic import Field

from outlier_atlas.settings.section import CriterionSettings, PositiveFloat
from outlier_atlas.settings.sites import ChannelSite


class SystematicOutliersSettings(CriterionSettings):
    """Settings of systematic outliers (An et al. 2025)."""

    site: ChannelSite = Field("resid_post", description="Site of systematic outliers.")
    ratio: PositiveFloat = Field(
        1000.0,
        description="A token is flagged if its largest |x| > this many times the mean of |x| "
        "over all tokens and channels of the sequence in that layer.",
    )
