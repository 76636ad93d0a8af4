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
it, and goes on beside the norm."""

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
