"""The settings of the outlier features of LLM.int8()."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from outlier_atlas.settings.section import CriterionSettings, PositiveFloat, Share, refuse_repeats
from outlier_atlas.settings.sites import CHANNEL_SITES, ChannelSite

LayerShare = Literal["layers", "tensors"]
PositionShare = Literal["union", "mean", "max"]


class LlmInt8Settings(CriterionSettings):
    """Outlier features of Dettmers et al. 2022 (arXiv 2208.07339, section 4.1)."""

    sites: Annotated[list[ChannelSite], Field(min_length=1)] = Field(
        ["attn_in", "mlp_in"],
        description="Inputs of linear layers that the criterion looks at; all of them must be "
        "measured.",
    )
    threshold: PositiveFloat = Field(6.0, description="A value is an outlier where |x| >= this.")
    layer_share: Share = Field(
        0.25, description="A channel must have outliers in at least this share of the layers."
    )
    position_share: Share = Field(
        0.06,
        description="… and at no less than this share of the positions (sequence, position).",
    )
    layer_share_over: LayerShare = Field(
        "layers",
        description="What the layer share counts: layers (an outlier at any site of it) or tensors "
        "(each layer and site apart).",
    )
    position_share_by: PositionShare = Field(
        "union",
        description="The position share: over the union of all layers and sites, the mean over "
        "affected tensors, or the largest of one tensor.",
    )

    @field_validator("sites")
    @classmethod
    def _canonical_sites(cls, sites: list[ChannelSite]) -> list[ChannelSite]:
        refuse_repeats(sites)
        return sorted(sites, key=CHANNEL_SITES.index)

    @property
    def least(self) -> dict[str, float]:
        """The least |x| of each site that is needed with its place."""
        return dict.fromkeys(self.sites, self.threshold)
