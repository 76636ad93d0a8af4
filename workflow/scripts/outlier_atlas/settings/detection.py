"""The `detection` section: one block a criterion."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from outlier_atlas.settings.section import (
    Index,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
    percent,
    refuse_repeats,
)
from outlier_atlas.settings.sites import CHANNEL_SITES, ChannelSite

LayerShare = Literal["layers", "tensors"]
PositionShare = Literal["union", "mean", "max"]


class LlmInt8Settings(Section):
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


class MassiveActivationsSettings(Section):
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


class ExpertsSettings(Section):
    """What is said of the experts of a mixture of experts, where `expert_out` is measured."""

    min_tokens: PositiveInt = Field(
        1,
        description="Experts that saw fewer tokens of the run are listed; 1 lists those that saw "
        "none, of which nothing at all is known.",
    )


class SmoothQuantSettings(Section):
    """Scales of Xiao et al. 2023 (arXiv 2211.10438), where weights are measured."""

    alpha: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5,
        description="How much of an outlier is moved into the weights: s = max|X|^alpha / "
        "max|W|^(1 - alpha).",
    )


class AttentionSinksSettings(Section):
    """Attention sinks of Gu et al. 2024 (arXiv 2410.10781), where `attn_sink` is measured."""

    threshold: Share = Field(
        0.3, description="A token is a sink in a head if it receives more than this of attention."
    )


class SuperWeightsSettings(Section):
    """Super weights of Yu et al. 2024 (arXiv 2411.07191), from `mlp_hidden` and `down_proj_out`, or
    `expert_out`."""

    threshold: PositiveFloat = Field(
        50.0,
        description="At the token of the largest |output| of a down projection, that output and "
        "the largest |input| must both be above this.",
    )
    min_share: Share = Field(
        0.5,
        description="The weight between them must make at least this share of the output: weight "
        "times input over output.",
    )


class SuperExpertsSettings(Section):
    """Super experts of Su et al. 2025 (arXiv 2507.23279, eq. 8), from `expert_out`."""

    quantile: Share = Field(
        0.995,
        description="An expert's largest |down_proj output| must be above this quantile of those "
        "of all experts of all layers …",
    )
    ratio: PositiveFloat = Field(0.1, description="… and above this many times the largest …")
    growth: PositiveFloat = Field(
        1.25,
        description="… in a layer in which massive activations form: one that has a massive "
        "activation, and whose largest |x| at the site of massive activations is at least this "
        "many times that of the measured layer before it. The first measured layer needs the "
        "massive activation alone: name the layers below it, too, in extraction.layers.",
    )


class SystematicOutliersSettings(Section):
    """Systematic outliers of An et al. 2025."""

    site: ChannelSite = Field("resid_post", description="Where they are looked for.")
    ratio: PositiveFloat = Field(
        1000.0,
        description="A token is flagged where its largest |x| > this many times the mean of |x| "
        "over all tokens and channels of the sequence in that layer.",
    )


class TokenOutliersSettings(Section):
    """Token outliers of PrefixQuant (Chen et al. 2024, arXiv 2410.05265)."""

    site: ChannelSite = Field("mlp_hidden", description="Where they are looked for.")
    ratio: PositiveFloat = Field(
        64.0,
        description="A token is an outlier where its largest |x| > this many times the median "
        "over the tokens of its sequence in that layer.",
    )


class TokenNormsSettings(Section):
    """The tokens of the largest norm."""

    site: ChannelSite = Field("resid_post", description="Where norms are taken.")
    top: PositiveInt = Field(20, description="Tokens that are listed of each layer.")


class QuantizationErrorSettings(Section):
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


class ExcludeSettings(Section):
    """Tokens that are left out of the tables of detection, but for those of attention sinks and of
    perplexity; what is stored has them all."""

    special_tokens: bool = Field(False, description="Special tokens of the tokenizer.")
    first_positions: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="So many tokens from the beginning of each sequence."
    )
    token_ids: list[Index] = Field([], description="Tokens with these ids.")

    @field_validator("token_ids")
    @classmethod
    def _canonical_ids(cls, ids: list[int]) -> list[int]:
        refuse_repeats(ids)
        return sorted(ids)

    @property
    def said(self) -> str:
        """What is left out, in a sentence; empty where nothing is."""
        parts = ["special tokens"] if self.special_tokens else []
        if self.first_positions:
            parts.append(f"the first {self.first_positions} positions of each sequence")
        if self.token_ids:
            parts.append(f"token ids {', '.join(map(str, self.token_ids))}")
        return f"Left out (detection.exclude): {'; '.join(parts)}." if parts else ""


MOST_RESAMPLES = 100_000
"""More would take gigabytes, a number for each draw and sequence."""


class BootstrapSettings(Section):
    """Intervals over sequences: how far a number depends on which sequences were read."""

    resamples: Annotated[int, Field(ge=1, le=MOST_RESAMPLES)] = Field(
        1000,
        description="How often as many sequences are drawn, with replacement: so many that at "
        "least one draw lies beyond each end of an interval.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Of the draws.")
    level: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="Share of the draws that lies within an interval (percentiles)."
    )

    @model_validator(mode="after")
    def _enough_resamples(self) -> BootstrapSettings:
        """Refuse a level whose percentiles so many draws do not have."""
        level, resamples = Decimal(repr(self.level)), self.resamples  # as it was written
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
    def said(self) -> str:
        """What an interval is, in two sentences."""
        return (
            f"{percent(self.level)} % bootstrap intervals over sequences: percentiles of "
            f"{self.resamples:,} draws of as many sequences, with replacement "
            f"(detection.bootstrap); those of values are of |x|. They say how far a number depends "
            f"on which sequences were read, and that of a maximum ends at what was read."
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
        SuperWeightsSettings(), description="Super weights: where they are."
    )
    super_experts: SuperExpertsSettings = Field(
        SuperExpertsSettings(), description="Super experts of a mixture of experts."
    )
    systematic_outliers: SystematicOutliersSettings = Field(
        SystematicOutliersSettings(), description="Systematic outliers, with their token classes."
    )
    token_outliers: TokenOutliersSettings = Field(
        TokenOutliersSettings(), description="Token outliers as PrefixQuant has them."
    )
    token_norms: TokenNormsSettings = Field(
        TokenNormsSettings(), description="Tokens by their norm."
    )
    quantization_error: QuantizationErrorSettings = Field(
        QuantizationErrorSettings(), description="Errors of rounding to formats of few bits."
    )
    exclude: ExcludeSettings = Field(
        ExcludeSettings(),
        description="Tokens that are left out of every number, but for those of attention sinks, "
        "perplexity and ablation. All sites have to be stored.",
    )
    bootstrap: BootstrapSettings = Field(
        BootstrapSettings(), description="Intervals over sequences."
    )

    @property
    def least(self) -> dict[str, float]:
        """Of each site the least |x| that a criterion asks for with its place."""
        site, absolute = self.massive_activations.site, self.massive_activations.absolute
        least: dict[str, float] = dict.fromkeys(self.llm_int8.sites, self.llm_int8.threshold)
        return least | {site: min(absolute, least.get(site, absolute))}
