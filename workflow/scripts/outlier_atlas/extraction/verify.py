"""Comparison of the first batch of a job with a direct forward pass of its layer group.

The store must contain the values of the plain model, bit for bit. Tests check this for some models.
This module checks it for the current model before any value is stored.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING

import torch

from outlier_atlas.settings.extraction import Verify

if TYPE_CHECKING:
    from outlier_atlas.extraction.capture import Keep, LayerGroup
    from outlier_atlas.roles.block_sites import Tap

log = logging.getLogger(__name__)

CHEAP = 50
"""Number of batches above which one more forward pass adds less than 2 % to a job."""


def verifies(setting: Verify, batches: int) -> bool:
    """Return whether the first batch of a job is compared.

    Args:
        setting: value of `extraction.verify`.
        batches: number of batches of the job.
    """
    return setting == "first_batch" or (setting == "auto" and batches > CHEAP)


def compared(group: LayerGroup, batch: torch.Tensor, keep: Keep) -> Keep:
    """Return a callback that compares tensors with a direct forward pass before it calls `keep`.

    Args:
        group: the layer group, which runs the batch once in this function with plain hooks.
        batch: batch for `LayerGroup.run`.
        keep: callback. It is not called with a tensor that differs, so the batch is not
            committed.

    Raises:
        ValueError: raised by the returned callback if a tensor differs in any bit.
    """
    digests: dict[tuple[str, int], str] = {}

    def record(tap: Tap, tensor: torch.Tensor) -> None:
        digests[tap.site, tap.layer] = _digest(tensor)

    def compare(tap: Tap, tensor: torch.Tensor) -> None:
        if _digest(tensor) != digests.pop((tap.site, tap.layer), None):
            raise ValueError(
                f"{tap.site} of layer {tap.layer} is not what a direct forward pass of the same "
                f"batch gives, so nothing of it is stored: this model does not run the same way "
                f"twice, or is not understood here; `extraction: {{verify: never}}` runs it unseen"
            )
        keep(tap, tensor)
        if not digests:
            log.info("the first batch equals a direct forward pass of the layer group, bit for bit")

    group.run_directly(batch, record)
    return compare


def _digest(tensor: torch.Tensor) -> str:
    """Return a digest of the shape and every bit of a tensor."""
    values = tensor.detach().cpu().contiguous()
    bits = values.view(torch.uint8).numpy()
    return f"{tuple(values.shape)} {hashlib.sha256(bits.data).hexdigest()}"
