"""The settings of quantization errors."""

from __future__ import annotations

from pydantic import Field, field_validator

from outlier_atlas.settings.section import CriterionSettings, PositiveFloat, refuse_repeats
from outlier_atlas.settings.sites import CHANNEL_SITES, ChannelSite


class QuantizationErrorSettings(CriterionSettings):
    """Settings of the errors of rounding values to INT8, FP8, MXFP8, MXFP4 and NVFP4."""

    sites: list[ChannelSite] = Field(
        [],
        description="Sites to round, such as `[attn_in, mlp_in]`. They must be stored, because the "
        "rounded channels depend on `threshold`, and a changed threshold could only be applied to "
        "an unstored site by running the model again. Off by default: it takes up to three times "
        "as long as everything else that detection computes from these sites' values.",
    )
    threshold: PositiveFloat = Field(
        6.0,
        description="Channels with |x| >= this in a tile (the tokens of a sequence within a chunk) "
        "are its outlier channels, which LLM.int8() does not round.",
    )

    @field_validator("sites")
    @classmethod
    def _canonical_sites(cls, sites: list[ChannelSite]) -> list[ChannelSite]:
        refuse_repeats(sites)
        return sorted(sites, key=CHANNEL_SITES.index)
