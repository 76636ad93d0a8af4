"""A layer group on its way from the checkpoint to its devices."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from outlier_atlas.extraction.capture import LayerGroup
from outlier_atlas.loading.partial import load_model, weight_bytes
from outlier_atlas.loading.placement import place
from outlier_atlas.roles.architecture import Architecture
from outlier_atlas.roles.block_sites import Tap
from outlier_atlas.roles.lm_head import Head
from outlier_atlas.settings.sites import TOKEN_LOSS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)


def load_group(
    model: tuple[Path, PretrainedConfig, Architecture],
    layers: range,
    dtype: str,
    trust_remote_code: bool,
    taps: Sequence[Tap],
    where: Sequence[str],
    sink_tokens: int = 0,
) -> LayerGroup:
    """The layer group with its weights on the devices; with the head where losses are taken.

    Args:
        model: its folder, its configuration and its architecture.
        layers: those that it runs.
        dtype: of the weights and the forward pass.
        trust_remote_code: whether code from the checkpoint may run.
        taps: what is taken.
        where: its devices.
        sink_tokens: of how many first tokens `attn_sink` is taken.

    Raises:
        ValueError: the checkpoint lacks weights, or has other ones.
    """
    started = time.monotonic()
    folder, config, architecture = model
    losses = any(tap.site == TOKEN_LOSS for tap in taps)
    whole = load_model(folder, config, architecture, layers, dtype, trust_remote_code, losses)
    size = weight_bytes(whole)
    decoder = whole.get_submodule(architecture.decoder)
    place(decoder, architecture.stack, layers, where)
    head = None
    if losses:
        head = Head(whole, architecture.decoder, architecture.head.vocabulary)
        head.model.to(where[0])
    log.info(
        "layers %d to %d: %.1f MiB of weights, as %s on %s, loaded in %.1f s",
        layers[0], layers[-1], size / 2**20, dtype, ", ".join(where), time.monotonic() - started,
    )  # fmt: skip
    return LayerGroup(decoder, architecture, layers, taps, sink_tokens, head)
