"""The sites at which activations are measured in every block, each declared once.

A new site needs a `Declaration` and its name in the types below. `roles/block_sites.py` maps a site
to a module of a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

ChannelSite = Literal[
    "resid_pre",
    "attn_in",
    "q",
    "k",
    "v",
    "attn_hidden",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "router_logits",
    "mlp_hidden",
    "down_proj_out",
    "mlp_out",
    "resid_post",
]
"""Sites with a value for each token and channel, in the order in which a block computes them."""

AlterableSite = Literal[
    "resid_pre",
    "attn_in",
    "q",
    "k",
    "v",
    "attn_hidden",
    "attn_out",
    "mlp_in",
    "mlp_hidden",
    "down_proj_out",
    "mlp_out",
    "resid_post",
]
"""Sites whose value can be changed for all later modules.

`resid_mid` is not one of them: it is measured at the input of a norm, and the residual stream also
bypasses that norm.
"""

Site = Literal[ChannelSite, "expert_out", "attn_sink"]
"""All sites.

`expert_out` has five numbers for each token and each expert that the token is routed to: the
largest |down_proj output| with its sign, before the router's weight; the expert; the channel of
that output; the largest |down_proj input| of the same token and expert; and the channel of that
input. `attn_sink` has the attention that each of a sequence's first tokens receives in each head.
"""

CHANNEL_SITES: tuple[ChannelSite, ...] = get_args(ChannelSite)
SITES: tuple[Site, ...] = get_args(Site)
EXPERT_OUT: Site = "expert_out"
ATTN_SINK: Site = "attn_sink"


@dataclass(frozen=True)
class Declaration:
    """The declaration of a site.

    Attributes:
        name: short description, for the report.
        definition: definition in the table of `docs/sites.md`.
        llama: the module input or output of a Llama block; empty if there is none.
        transformer_lens: name of the hook in TransformerLens; empty if there is none.
        note: number of the note under the table of `docs/sites.md`; 0 if there is none.
        dimension: name of the last dimension of the site's arrays. Sites share a name if their
            widths are equal in most models. In a model where they differ, `store/dimensions.py`
            gives a site its own name.
        linear_input: whether the site is an input of linear layers.
    """

    name: str
    definition: str
    llama: str = ""
    transformer_lens: str = ""
    note: int = 0
    dimension: str = "channel"
    linear_input: bool = False


DECLARED: dict[Site, Declaration] = {
    "resid_pre": Declaration(
        name="residual stream before the block",
        definition="the residual stream at the input of the block",
        llama="block input",
        transformer_lens="hook_resid_pre",
    ),
    "attn_in": Declaration(
        name="input of attention",
        definition="the input of the attention module",
        llama="output of `input_layernorm`",
        transformer_lens="ln1.hook_normalized",
        note=1,
        linear_input=True,
    ),
    "q": Declaration(
        name="queries, before any clipping and rotation",
        definition="the queries of all heads, before any rotation or clipping (`clip_qkv`)",
        llama="output of `q_proj`",
        transformer_lens="attn.hook_q",
        dimension="q_channel",
    ),
    "k": Declaration(
        name="keys, before any clipping and rotation",
        definition="the keys of all heads, before any rotation or clipping",
        llama="output of `k_proj`",
        transformer_lens="attn.hook_k",
        dimension="kv_channel",
    ),
    "v": Declaration(
        name="values, before any clipping",
        definition="the values of all heads, before any clipping",
        llama="output of `v_proj`",
        transformer_lens="attn.hook_v",
        dimension="kv_channel",
    ),
    "attn_hidden": Declaration(
        name="input of attention's output projection",
        definition="the input of attention's output projection",
        llama="input of `o_proj`",
        transformer_lens="attn.hook_z",
        dimension="q_channel",
        linear_input=True,
    ),
    "attn_out": Declaration(
        name="contribution of attention",
        definition="the contribution of attention to the residual stream",
        llama="output of `self_attn`",
        transformer_lens="hook_attn_out",
    ),
    "resid_mid": Declaration(
        name="residual stream between attention and MLP",
        definition="the residual stream between attention and MLP",
        llama="input of `post_attention_layernorm`",
        transformer_lens="hook_resid_mid",
    ),
    "mlp_in": Declaration(
        name="input of the MLP",
        definition="the input of the MLP or mixture of experts",
        llama="output of `post_attention_layernorm`",
        transformer_lens="ln2.hook_normalized",
        note=1,
        linear_input=True,
    ),
    "router_logits": Declaration(
        name="router scores per expert",
        definition="the router's scores in a mixture of experts, before any softmax",
        dimension="expert",
    ),
    "mlp_hidden": Declaration(
        name="input of the MLP's down projection",
        definition="the input of the MLP's down projection",
        llama="input of `down_proj`",
        transformer_lens="mlp.hook_post",
        dimension="mlp_channel",
        linear_input=True,
    ),
    "down_proj_out": Declaration(
        name="output of the down projection",
        definition="the output of the down projection itself, with its bias",
        llama="output of `down_proj`",
        transformer_lens="hook_mlp_out",
        note=3,
    ),
    "mlp_out": Declaration(
        name="contribution of the MLP",
        definition="the contribution of the MLP or mixture of experts to the residual stream",
        llama="output of `mlp`",
        transformer_lens="hook_mlp_out",
    ),
    "resid_post": Declaration(
        name="residual stream after the block",
        definition="the residual stream at the output of the block",
        llama="block output",
        transformer_lens="hook_resid_post",
    ),
    "expert_out": Declaration(
        name="largest output of each routed expert",
        definition="for each expert that a token is routed to, the largest |down_proj output|, "
        "before the router's weight",
        dimension="routed",
    ),
    "attn_sink": Declaration(
        name="attention that the first tokens receive",
        definition="the attention that each of a sequence's first tokens receives in each head",
        transformer_lens="attn.hook_pattern",
        note=2,
        dimension="head",
    ),
}

SITE_NAMES: dict[str, str] = {site: declared.name for site, declared in DECLARED.items()}
DIMENSIONS: dict[str, str] = {site: declared.dimension for site, declared in DECLARED.items()}
LINEAR_INPUTS: tuple[Site, ...] = tuple(s for s, each in DECLARED.items() if each.linear_input)

SUPER_WEIGHT_SITES: tuple[ChannelSite, ChannelSite] = ("mlp_hidden", "down_proj_out")
"""The input and the output of the down projection itself."""

TOKEN_LOSS: Literal["token_loss"] = "token_loss"
"""The loss of each token, measured after the last layer; not a site of a block."""

Place = Site | Literal["token_loss"]
"""A site, or the token loss: everything that can be measured."""


def floor_key(site: str) -> str:
    """Return the key of `extraction.advanced` with the floor of a site's summaries."""
    return "outlier_floor" if site in LINEAR_INPUTS else "massive_floor"


def markdown() -> str:
    """Return the table of `docs/sites.md`."""
    rows = [
        "| site | what it is | in a Llama block | in TransformerLens |",
        "|---|---|---|---|",
    ]
    for site, declared in DECLARED.items():
        lens = f"`{declared.transformer_lens}`" if declared.transformer_lens else ""
        if site == ATTN_SINK:
            lens = f"mean of a column of {lens}"
        lens += f" ({declared.note})" if declared.note else ""
        definition = declared.definition.replace("|", r"\|")
        cells = (f"`{site}`", definition, declared.llama, lens)
        rows.append(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|")
    return "\n".join(rows)
