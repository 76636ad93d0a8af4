"""The sites: places in every block where activations are measured."""

from __future__ import annotations

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
"""Those with a value for each token and channel, in the order a block meets them."""

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
"""Those whose value is all that what follows sees of it. `resid_mid` is measured where a norm reads
it, and continues around the norm."""

Site = Literal[ChannelSite, "expert_out", "attn_sink"]
"""All of them. `expert_out` has, for each token and each expert that it is routed to, the largest
|down_proj output| with its sign, before the router's weight; which expert it is; the channel in
which the value lies; and the largest |down_proj input| of the same token and expert, with its
channel. `attn_sink` has, for each of a sequence's first tokens and each head, the
attention that the token receives."""

CHANNEL_SITES: tuple[ChannelSite, ...] = get_args(ChannelSite)
SITES: tuple[Site, ...] = get_args(Site)
EXPERT_OUT: Site = "expert_out"
ATTN_SINK: Site = "attn_sink"

SITE_NAMES: dict[str, str] = {
    "resid_pre": "residual stream before the block",
    "attn_in": "input of attention",
    "q": "queries, before any clipping and rotation",
    "k": "keys, before any clipping and rotation",
    "v": "values, before any clipping",
    "attn_hidden": "input of attention's output projection",
    "attn_out": "what attention adds",
    "resid_mid": "residual stream between attention and MLP",
    "mlp_in": "input of the MLP",
    "router_logits": "router scores per expert",
    "mlp_hidden": "input of the MLP's down projection",
    "down_proj_out": "output of the down projection",
    "mlp_out": "what the MLP adds",
    "resid_post": "residual stream after the block",
    "expert_out": "largest output of each routed expert",
    "attn_sink": "attention that the first tokens receive",
}
"""What a site is, in a few words."""

DIMENSIONS: dict[str, str] = {
    "resid_pre": "channel",
    "attn_in": "channel",
    "q": "q_channel",
    "k": "kv_channel",
    "v": "kv_channel",
    "attn_hidden": "q_channel",
    "attn_out": "channel",
    "resid_mid": "channel",
    "mlp_in": "channel",
    "router_logits": "expert",
    "mlp_hidden": "mlp_channel",
    "down_proj_out": "channel",
    "mlp_out": "channel",
    "resid_post": "channel",
    "expert_out": "routed",
    "attn_sink": "head",
}
"""Name of the last dimension of a site's arrays. Sites share a name where their widths are equal in
most models; `store/dimensions.py` gives a site a name of its own in a model where they differ."""

LINEAR_INPUTS: tuple[ChannelSite, ...] = ("attn_in", "attn_hidden", "mlp_in", "mlp_hidden")
"""Those that linear layers read."""

SUPER_WEIGHT_SITES: tuple[ChannelSite, ChannelSite] = ("mlp_hidden", "down_proj_out")
"""Input and output of the down projection itself."""

TOKEN_LOSS: Literal["token_loss"] = "token_loss"
"""What is measured behind the last layer: a number for each token, and no site of a block."""

Place = Site | Literal["token_loss"]
"""All that can be measured."""


def floor_key(site: str) -> str:
    """The key of `extraction.advanced` that says what a site's summary keeps."""
    return "outlier_floor" if site in LINEAR_INPUTS else "massive_floor"
