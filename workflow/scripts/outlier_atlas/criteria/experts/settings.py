"""The settings of the measures of experts."""

from __future__ import annotations

from pydantic import Field

from outlier_atlas.settings.section import CriterionSettings, PositiveInt


class ExpertsSettings(CriterionSettings):
    """What is said of the experts of a mixture of experts, where `expert_out` is measured."""

    min_tokens: PositiveInt = Field(
        1,
        description="Experts that saw fewer tokens of the run are listed; 1 lists those that saw "
        "none, of which nothing at all is known.",
    )
