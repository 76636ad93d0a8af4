"""The settings of massive activations."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from outlier_atlas.settings.section import CriterionSettings, PositiveFloat
from outlier_atlas.settings.sites import ChannelSite


class MassiveActivationsSettings(CriterionSettings):
    """Massive activations of Sun et al. 2024 (arXiv 2402.17762)."""

    site: ChannelSite = Field(
        "resid_post", description="Where they are looked for; the paper: the residual stream."
    )
    absolute: PositiveFloat = Field(100.0, description="A massive activation has |x| > this …")
    ratio: PositiveFloat = Field(
        1000.0, description="… and |x| >= this many times the median of |x|."
    )
    median: Literal["tensor", "token"] = Field(
        "tensor",
        description="Which median: `tensor`, over all tokens and channels of the sequence in that "
        "layer (the paper), or `token`, over the channels of the token itself.",
    )

    @property
    def least(self) -> dict[str, float]:
        """The least |x| of each site that is needed with its place."""
        return {self.site: self.absolute}
