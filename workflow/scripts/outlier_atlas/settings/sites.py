"""The sites: places in every block where activations are measured, each declared once.

A new site is a `Declaration` and its name in the types below. Its module in a model is found in
`roles/block_sites.py`.
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
"""Sites whose value is all that later modules see of it. `resid_mid` is measured where a norm reads
it, and continues around the norm."""

Site = Literal[ChannelSite, "expert_out", "attn_sink"]
"""All sites. `expert_out` has, for each token and each expert that it is routed to, the largest
|down_proj output| with its sign, before the router's weight; which expert it is; the channel in
which the value lies; and the largest |down_proj input| of the same token and expert, with its
channel. `attn_sink` has, for each of a sequence's first tokens and each head, the
attention that the token receives."""

CHANNEL_SITES: tuple[ChannelSite, ...] = get_args(ChannelSite)
SITES: tuple[Site, ...] = get_args(Site)
EXPERT_OUT: Site = "expert_out"
ATTN_SINK: Site = "attn_sink"


@dataclass(frozen=True)
class Declaration:
    """What is known of a site beforehand.

    Attributes:
        name: in a few words, for the report.
        definition: as the table of `docs/sites.md` has it.
        llama: the same place in a Llama block; empty where no module has it.
        transformer_lens: its name in TransformerLens; empty where there is none.
        note: number of the note under that table.
        dimension: name of the last dimension of the site's arrays. Sites share a name where their
            widths are equal in most models; `store/dimensions.py` gives a site a name of its own in
            a model where they differ.
        linear_input: whether linear layers read it.
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
        definition="the residual stream into the block",
        llama="block input",
        transformer_lens="hook_resid_pre",
    ),
    "attn_in": Declaration(
        name="input of attention",
        definition="what the attention module receives",
        llama="output of `input_layernorm`",
        transformer_lens="ln1.hook_normalized",
        note=1,
        linear_input=True,
    ),
    "q": Declaration(
        name="queries, before any clipping and rotation",
        definition="queries, head after head, before any rotation or clipping (`clip_qkv`)",
        llama="output of `q_proj`",
        transformer_lens="attn.hook_q",
        dimension="q_channel",
    ),
    "k": Declaration(
        name="keys, before any clipping and rotation",
        definition="keys, likewise",
        llama="output of `k_proj`",
        transformer_lens="attn.hook_k",
        dimension="kv_channel",
    ),
    "v": Declaration(
        name="values, before any clipping",
        definition="values, likewise",
        llama="output of `v_proj`",
        transformer_lens="attn.hook_v",
        dimension="kv_channel",
    ),
    "attn_hidden": Declaration(
        name="input of attention's output projection",
        definition="what attention's output projection receives",
        llama="input of `o_proj`",
        transformer_lens="attn.hook_z",
        dimension="q_channel",
        linear_input=True,
    ),
    "attn_out": Declaration(
        name="what attention adds",
        definition="what attention adds to the residual stream",
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
        definition="what the MLP or mixture of experts receives",
        llama="output of `post_attention_layernorm`",
        transformer_lens="ln2.hook_normalized",
        note=1,
        linear_input=True,
    ),
    "router_logits": Declaration(
        name="router scores per expert",
        definition="of a mixture of experts, the router's scores, before any softmax",
        dimension="expert",
    ),
    "mlp_hidden": Declaration(
        name="input of the MLP's down projection",
        definition="what the MLP's down projection receives",
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
        name="what the MLP adds",
        definition="what the MLP or mixture of experts adds",
        llama="output of `mlp`",
        transformer_lens="hook_mlp_out",
    ),
    "resid_post": Declaration(
        name="residual stream after the block",
        definition="the residual stream out of the block",
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
        definition="what each of a sequence's first tokens receives of attention, head by head",
        transformer_lens="attn.hook_pattern",
        note=2,
        dimension="head",
    ),
}

SITE_NAMES: dict[str, str] = {site: declared.name for site, declared in DECLARED.items()}
DIMENSIONS: dict[str, str] = {site: declared.dimension for site, declared in DECLARED.items()}
LINEAR_INPUTS: tuple[Site, ...] = tuple(s for s, each in DECLARED.items() if each.linear_input)

SUPER_WEIGHT_SITES: tuple[ChannelSite, ChannelSite] = ("mlp_hidden", "down_proj_out")
"""Input and output of the down projection itself."""

TOKEN_LOSS: Literal["token_loss"] = "token_loss"
"""What is measured behind the last layer: a number for each token, and no site of a block."""

Place = Site | Literal["token_loss"]
"""All that can be measured."""


def floor_key(site: str) -> str:
    """The key of `extraction.advanced` that says what a site's summary keeps."""
    return "outlier_floor" if site in LINEAR_INPUTS else "massive_floor"


def markdown() -> str:
    """The table of `docs/sites.md`."""
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
