"""The settings of the outlier features of LLM.int8()."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from outlier_atlas.settings.section import CriterionSettings, PositiveFloat, Share, refuse_repeats
from outlier_atlas.settings.sites import CHANNEL_SITES, ChannelSite

LayerShare = Literal["layers", "tensors"]
PositionShare = Literal["union", "mean", "max"]


class LlmInt8Settings(CriterionSettings):
    """Settings of outlier features (Dettmers et al. 2022, arXiv 2208.07339, section 4.1)."""

    sites: Annotated[list[ChannelSite], Field(min_length=1)] = Field(
        ["attn_in", "mlp_in"],
        description="Inputs of linear layers at which the criterion is evaluated; all of them must "
        "be measured.",
    )
    threshold: PositiveFloat = Field(6.0, description="A value is an outlier if |x| >= this.")
    layer_share: Share = Field(
        0.25,
        description="An outlier feature is a channel with outliers in at least this share of the "
        "layers and in `position_share` of the positions.",
    )
    position_share: Share = Field(
        0.06,
        description="Least share of the positions (sequence, position) with an outlier in the "
        "channel of an outlier feature.",
    )
    layer_share_over: LayerShare = Field(
        "layers",
        description="Unit of the layer share: layers (with an outlier at any site) or tensors "
        "(each layer and site separately).",
    )
    position_share_by: PositionShare = Field(
        "union",
        description="Definition of the position share: over the union of all layers and sites, the "
        "mean over affected tensors, or the largest of one tensor.",
    )

    @field_validator("sites")
    @classmethod
    def _canonical_sites(cls, sites: list[ChannelSite]) -> list[ChannelSite]:
        refuse_repeats(sites)
        return sorted(sites, key=CHANNEL_SITES.index)

    @property
    def least(self) -> dict[str, float]:
        """Smallest |x| at each site whose token and channel must be known."""
        return dict.fromkeys(self.sites, self.threshold)
