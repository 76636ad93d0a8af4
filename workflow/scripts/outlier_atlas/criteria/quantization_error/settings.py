"""The settings of quantization errors."""

from __future__ import annotations

from pydantic import Field, field_validator

from outlier_atlas.settings.section import CriterionSettings, PositiveFloat, refuse_repeats
from outlier_atlas.settings.sites import CHANNEL_SITES, ChannelSite


class QuantizationErrorSettings(CriterionSettings):
    """What INT8, FP8, MXFP8, MXFP4 and NVFP4 would take from the values of some sites."""

    sites: list[ChannelSite] = Field(
        [],
        description="Sites to round, such as `[attn_in, mlp_in]`; they must be stored: which "
        "channels are rounded depends on `threshold`, and of a site that is not stored another one "
        "would have to read the model. Off by default: it takes up to three times as long as all "
        "else that detection makes of these sites' values.",
    )
    threshold: PositiveFloat = Field(
        6.0,
        description="Channels with |x| >= this in a tile (the tokens of a sequence within a chunk) "
        "are its outlier channels, which LLM.int8() leaves as they are.",
    )

    @field_validator("sites")
    @classmethod
    def _canonical_sites(cls, sites: list[ChannelSite]) -> list[ChannelSite]:
        refuse_repeats(sites)
        return sorted(sites, key=CHANNEL_SITES.index)
