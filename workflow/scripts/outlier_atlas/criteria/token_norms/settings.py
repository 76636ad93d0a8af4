"""The settings of token norms."""

from __future__ import annotations

from pydantic import Field

from outlier_atlas.settings.section import CriterionSettings, PositiveInt
from outlier_atlas.settings.sites import ChannelSite


class TokenNormsSettings(CriterionSettings):
    """Settings of the tokens with the largest norms."""

    site: ChannelSite = Field("resid_post", description="Site of the norms.")
    top: PositiveInt = Field(20, description="Number of tokens that are listed for each layer.")
