"""The `detection` section: one block for each criterion or measure that has settings."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from outlier_atlas.criteria.attention_sinks.settings import AttentionSinksSettings
from outlier_atlas.criteria.experts.settings import ExpertsSettings
from outlier_atlas.criteria.llm_int8.settings import LlmInt8Settings
from outlier_atlas.criteria.massive_activations.settings import MassiveActivationsSettings
from outlier_atlas.criteria.quantization_error.settings import QuantizationErrorSettings
from outlier_atlas.criteria.super_experts.settings import SuperExpertsSettings
from outlier_atlas.criteria.super_weights.settings import SuperWeightsSettings
from outlier_atlas.criteria.systematic_outliers.settings import SystematicOutliersSettings
from outlier_atlas.criteria.token_norms.settings import TokenNormsSettings
from outlier_atlas.criteria.token_outliers.settings import TokenOutliersSettings
from outlier_atlas.settings.section import (
    CriterionSettings,
    Index,
    Section,
    percent,
    refuse_repeats,
)


class SmoothQuantSettings(Section):
    """Settings of the SmoothQuant scales (Xiao et al. 2023, arXiv 2211.10438).

    The scales need `weights.measure`.
    """

    alpha: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5,
        description="Migration strength: how much of an outlier is moved into the weights, s = "
        "max|X|^alpha / max|W|^(1 - alpha).",
    )


class ExcludeSettings(Section):
    """Tokens that are excluded from the tables of detection.

    The tables of attention sinks and of perplexity include them, and so does the store.
    """

    special_tokens: bool = Field(False, description="Special tokens of the tokenizer.")
    first_positions: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="Number of tokens at the beginning of each sequence."
    )
    token_ids: list[Index] = Field([], description="Tokens with these ids.")

    @field_validator("token_ids")
    @classmethod
    def _canonical_ids(cls, ids: list[int]) -> list[int]:
        refuse_repeats(ids)
        return sorted(ids)

    @property
    def sentence(self) -> str:
        """Sentence that names the excluded tokens; empty if there are none."""
        parts = ["special tokens"] if self.special_tokens else []
        if self.first_positions:
            parts.append(f"the first {self.first_positions} positions of each sequence")
        if self.token_ids:
            parts.append(f"token ids {', '.join(map(str, self.token_ids))}")
        return f"Left out (detection.exclude): {'; '.join(parts)}." if parts else ""


MOST_RESAMPLES = 100_000
"""Upper limit: the draws need memory for one number per draw and sequence."""


class BootstrapSettings(Section):
    """Settings of the bootstrap intervals over sequences."""

    resamples: Annotated[int, Field(ge=1, le=MOST_RESAMPLES)] = Field(
        1000,
        description="Number of draws; each draws as many sequences as the run has, with "
        "replacement. It must be large enough that at least one draw lies beyond each end of an "
        "interval.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Seed of the draws.")
    level: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="Share of the draws inside an interval (percentiles)."
    )

    @model_validator(mode="after")
    def _enough_resamples(self) -> BootstrapSettings:
        """Refuse a level whose percentiles need more draws than `resamples`."""
        level, resamples = Decimal(repr(self.level)), self.resamples  # the level as written
        beyond = math.ceil(2 / (1 - level))
        if beyond > resamples:
            ways = [f"resamples of at least {beyond:,}"] * (beyond <= MOST_RESAMPLES)
            ways += [f"a level of at most {1 - 2 / resamples:g}"] * (resamples > 2)
            raise ValueError(
                f"level {self.level!r}: none of {resamples:,} resamples lies beyond the ends of "
                f"such an interval; take {' or '.join(ways)}"
            )
        if level * resamples < 1:
            raise ValueError(
                f"level {self.level!r}: none of {resamples:,} resamples lies within such an "
                f"interval; take a level of at least {1 / resamples:g}"
            )
        return self

    @property
    def sentence(self) -> str:
        """Definition of the intervals, in three sentences."""
        return (
            f"{percent(self.level)} % bootstrap intervals over sequences: percentiles of "
            f"{self.resamples:,} draws of as many sequences, with replacement "
            f"(detection.bootstrap). Intervals of values are intervals of |x|. They show how much "
            f"a number depends on the choice of sequences; the interval of a maximum cannot exceed "
            f"the maximum of the sequences that were read."
        )


class DetectionSettings(Section):
    llm_int8: LlmInt8Settings = Field(LlmInt8Settings(), description="LLM.int8() outlier features.")
    massive_activations: MassiveActivationsSettings = Field(
        MassiveActivationsSettings(), description="Massive activations."
    )
    experts: ExpertsSettings = Field(
        ExpertsSettings(), description="The experts of a mixture of experts."
    )
    smoothquant: SmoothQuantSettings = Field(
        SmoothQuantSettings(), description="SmoothQuant scales."
    )
    attention_sinks: AttentionSinksSettings = Field(
        AttentionSinksSettings(), description="Attention sinks."
    )
    super_weights: SuperWeightsSettings = Field(
        SuperWeightsSettings(), description="Super weights."
    )
    super_experts: SuperExpertsSettings = Field(
        SuperExpertsSettings(), description="Super experts of a mixture of experts."
    )
    systematic_outliers: SystematicOutliersSettings = Field(
        SystematicOutliersSettings(), description="Systematic outliers, with their token classes."
    )
    token_outliers: TokenOutliersSettings = Field(
        TokenOutliersSettings(), description="Token outliers, as PrefixQuant defines them."
    )
    token_norms: TokenNormsSettings = Field(TokenNormsSettings(), description="Norms of tokens.")
    quantization_error: QuantizationErrorSettings = Field(
        QuantizationErrorSettings(), description="Errors of rounding to low-bit formats."
    )
    exclude: ExcludeSettings = Field(
        ExcludeSettings(),
        description="Tokens that are excluded from every number except those of attention sinks, "
        "perplexity and ablation. All sites must be stored.",
    )
    bootstrap: BootstrapSettings = Field(
        BootstrapSettings(), description="Intervals over sequences."
    )

    @property
    def least(self) -> dict[str, float]:
        """Smallest |x| at each site whose token and channel a criterion needs."""
        least: dict[str, float] = {}
        for name in type(self).model_fields:
            if isinstance(block := getattr(self, name), CriterionSettings):
                least |= {site: min(x, least.get(site, x)) for site, x in block.least.items()}
        return least
