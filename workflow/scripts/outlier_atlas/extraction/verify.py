"""The first batch of a job, compared with a direct forward pass of its layer group.

The store promises what the plain model computes, bit for bit. Tests hold it to that on the models
that they know; this holds it on the model at hand, before anything of it is stored.
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
"""Batches from which on one more forward pass is less than 2 % of a job's work."""


def verifies(wanted: Verify, batches: int) -> bool:
    """Whether a job with so many batches has its first one compared."""
    return wanted == "first_batch" or (wanted == "auto" and batches > CHEAP)


def compared(group: LayerGroup, batch: torch.Tensor, keep: Keep) -> Keep:
    """`keep` for a batch, which takes only what a direct forward pass gives, too.

    Args:
        group: it runs the batch once, here, with plain hooks.
        batch: as `LayerGroup.run` takes it.
        keep: is not called with a tensor that differs, so that nothing of the batch is committed.

    Raises:
        ValueError: from the function that is returned: a tensor differs in any bit.
    """
    seen: dict[tuple[str, int], str] = {}

    def see(tap: Tap, tensor: torch.Tensor) -> None:
        seen[tap.site, tap.layer] = _digest(tensor)

    def compare(tap: Tap, tensor: torch.Tensor) -> None:
        if _digest(tensor) != seen.pop((tap.site, tap.layer), None):
            raise ValueError(
                f"{tap.site} of layer {tap.layer} is not what a direct forward pass of the same "
                f"batch gives, so nothing of it is stored: this model does not run the same way "
                f"twice, or is not understood here; `extraction: {{verify: never}}` runs it unseen"
            )
        keep(tap, tensor)
        if not seen:
            log.info("the first batch equals a direct forward pass of the layer group, bit for bit")

    group.run_directly(batch, see)
    return compare


def _digest(tensor: torch.Tensor) -> str:
    """Stands for the shape and every bit of a tensor."""
    values = tensor.detach().cpu().contiguous()
    bits = values.view(torch.uint8).numpy()
    return f"{tuple(values.shape)} {hashlib.sha256(bits.data).hexdigest()}"
