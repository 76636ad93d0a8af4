"""The settings of attention sinks."""

from __future__ import annotations

from pydantic import Field

from outlier_atlas.settings.section import CriterionSettings, Share


class AttentionSinksSettings(CriterionSettings):
    """Settings of attention sinks (Gu et al. 2024, arXiv 2410.10781), which need `attn_sink`."""

    threshold: Share = Field(
        0.3, description="A token is a sink in a head if it receives more attention than this."
    )
