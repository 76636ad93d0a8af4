"""The settings of token outliers."""

from __future__ import annotations

from pydantic import Field

from outlier_atlas.settings.section import CriterionSettings, PositiveFloat
from outlier_atlas.settings.sites import ChannelSite


class TokenOutliersSettings(CriterionSettings):
    """Settings of the token outliers of PrefixQuant (Chen et al. 2024, arXiv 2410.05265)."""

    site: ChannelSite = Field("mlp_hidden", description="Site of token outliers.")
    ratio: PositiveFloat = Field(
        64.0,
        description="A token is an outlier if its largest |x| > this many times the median "
        "over the tokens of its sequence in that layer.",
    )
