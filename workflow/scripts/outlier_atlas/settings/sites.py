"""The sites: places in every block where activations are measured."""

from __future__ import annotations

from typing import Literal, get_args

Site = Literal[
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
    "mlp_out",
    "resid_post",
]
"""In the order a block meets them."""

SITES: tuple[Site, ...] = get_args(Site)
