"""The settings of massive activations."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from outlier_atlas.settings.section import CriterionSettings, PositiveFloat
from outlier_atlas.settings.sites import ChannelSite


class MassiveActivationsSettings(CriterionSettings):
    """Settings of massive activations (Sun et al. 2024, arXiv 2402.17762)."""

    site: ChannelSite = Field(
        "resid_post",
        description="Site of massive activations; in the paper the residual stream.",
    )
    absolute: PositiveFloat = Field(
        100.0,
        description="A massive activation has |x| > this, and |x| >= `ratio` times the median.",
    )
    ratio: PositiveFloat = Field(
        1000.0, description="Least ratio of a massive activation's |x| to the median of |x|."
    )
    median: Literal["tensor", "token"] = Field(
        "tensor",
        description="Values of the median: `tensor`, all tokens and channels of the sequence in "
        "that layer (as in the paper), or `token`, the channels of the token itself.",
    )

    @property
    def least(self) -> dict[str, float]:
        """Smallest |x| at each site whose token and channel must be known."""
        return {self.site: self.absolute}
