"""The `detection` section: one block a criterion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from outlier_atlas.settings.section import (
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
    refuse_repeats,
)
from outlier_atlas.settings.sites import CHANNEL_SITES, ChannelSite


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
    layer_share_over: Literal["layers", "tensors"] = Field(
        "layers",
        description="What the layer share counts: layers (an outlier at any site of it) or tensors "
        "(each layer and site apart).",
    )
    position_share_by: Literal["union", "mean", "max"] = Field(
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


class AttentionSinksSettings(Section):
    """Attention sinks of Gu et al. 2024 (arXiv 2410.10781), where `attn_sink` is measured."""

    threshold: Share = Field(
        0.3, description="A token is a sink in a head if it receives more than this of attention."
    )


class DetectionSettings(Section):
    llm_int8: LlmInt8Settings = Field(LlmInt8Settings(), description="LLM.int8() outlier features.")
    massive_activations: MassiveActivationsSettings = Field(
        MassiveActivationsSettings(), description="Massive activations."
    )
    experts: ExpertsSettings = Field(
        ExpertsSettings(), description="The experts of a mixture of experts."
    )
    attention_sinks: AttentionSinksSettings = Field(
        AttentionSinksSettings(), description="Attention sinks."
    )
