"""The settings of token norms."""

from __future__ import annotations

from pydantic import Field

from outlier_atlas.settings.section import CriterionSettings, PositiveInt
from outlier_atlas.settings.sites import ChannelSite


class TokenNormsSettings(CriterionSettings):
    """The tokens of the largest norm."""

    site: ChannelSite = Field("resid_post", description="Where norms are taken.")
    top: PositiveInt = Field(20, description="Tokens that are listed of each layer.")
