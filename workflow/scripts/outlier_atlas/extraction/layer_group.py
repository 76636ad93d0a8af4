"""Loading of a layer group from the checkpoint to its devices."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from outlier_atlas.extraction.capture import LayerGroup
from outlier_atlas.loading.partial import load_model, weight_bytes
from outlier_atlas.loading.placement import move_to_devices
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
    devices: Sequence[str],
    sink_tokens: int = 0,
) -> LayerGroup:
    """Load a layer group onto its devices, with the head if losses are taken.

    Args:
        model: folder, configuration and architecture of the model.
        layers: layers that the group runs.
        dtype: dtype of the weights and the forward pass.
        trust_remote_code: whether code of the checkpoint may run.
        taps: taps to take.
        devices: devices of the group.
        sink_tokens: number of first tokens for which `attn_sink` is taken.

    Raises:
        ValueError: the checkpoint lacks weights, or has weights of another shape.
    """
    started = time.monotonic()
    folder, config, architecture = model
    losses = any(tap.site == TOKEN_LOSS for tap in taps)
    loaded = load_model(folder, config, architecture, layers, dtype, trust_remote_code, losses)
    size = weight_bytes(loaded)
    decoder = loaded.get_submodule(architecture.decoder)
    move_to_devices(decoder, architecture.stack, layers, devices)
    head = None
    if losses:
        head = Head(loaded, architecture.decoder, architecture.head.vocabulary)
        head.model.to(devices[0])
    log.info(
        "layers %d to %d: %.1f MiB of weights, as %s on %s, loaded in %.1f s",
        layers[0], layers[-1], size / 2**20, dtype, ", ".join(devices), time.monotonic() - started,
    )  # fmt: skip
    return LayerGroup(decoder, architecture, layers, taps, sink_tokens, head)
