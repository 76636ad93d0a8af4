"""The settings of the measures of experts."""

from __future__ import annotations

from pydantic import Field

from outlier_atlas.settings.section import CriterionSettings, PositiveInt


class ExpertsSettings(CriterionSettings):
    """Settings of the experts of a mixture of experts, which need `expert_out`."""

    min_tokens: PositiveInt = Field(
        1,
        description="Experts with fewer routed tokens are listed. 1 lists the experts without any "
        "token, about which nothing is known.",
    )
