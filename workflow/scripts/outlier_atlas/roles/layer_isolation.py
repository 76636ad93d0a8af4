"""Whether each layer of a decoder runs apart from the others: tried without memory or numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from outlier_atlas.roles import hidden_states
from outlier_atlas.roles.attention_heads import ListsOnHost
from outlier_atlas.roles.partial_decoder import dummy, strip
from outlier_atlas.roles.residual_flow import Flow
from outlier_atlas.roles.residual_trace import TOKENS, masks_to_try
from outlier_atlas.roles.state import fixed_rotation
from outlier_atlas.sanitize import gist

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def not_apart(decoder: PreTrainedModel, stack: str, flow: Flow, channels: int) -> str | None:
    """A layer that does not run without those before it, and why; None where all do.

    Of the layers that are made of the same modules one is tried, with a boundary in place of its
    hidden states.

    Args:
        decoder: on the meta device; pass-through modules take the place of its layers.
        stack: path of its decoder stack.
        flow: what was seen of it.
        channels: of an embedding.
    """
    blocks = decoder.get_submodule(stack)
    assert isinstance(blocks, nn.ModuleList)
    layers = list(blocks)
    returned = [flow.blocks[index].returned for index in range(len(layers))]
    strip(decoder, stack, range(0), returned, embedding=False)
    kinds = {_kind(layers[index]): index for index in range(len(layers) - 1, 0, -1)}
    for index in kinds.values():
        through, blocks[index] = blocks[index], layers[index]
        block = flow.blocks[index]
        boundary = torch.zeros(block.shape, dtype=block.given.dtype, device="meta")
        failed = _failure(decoder, layers[index], boundary, channels)
        blocks[index] = through
        if failed is not None:
            name = type(decoder).__name__
            return f"layer {index} of {name} does not run without those before it ({gist(failed)})"
    return None


def _kind(layer: nn.Module) -> tuple[tuple[str, str], ...]:
    return tuple((path, type(module).__name__) for path, module in layer.named_modules())


def _failure(
    decoder: PreTrainedModel, layer: nn.Module, boundary: torch.Tensor, channels: int
) -> Exception | None:
    """What goes wrong where a layer is called with a boundary; None where nothing does."""

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return hidden_states.replaced(boundary, args, kwargs)

    hooked = layer.register_forward_pre_hook(enter, with_kwargs=True)
    failed: Exception | None = None
    dtype = decoder.config.dtype
    for masks in masks_to_try(TOKENS, dtype):
        try:
            with ListsOnHost(), fixed_rotation(decoder), torch.inference_mode():
                embedded = dummy(boundary, channels, dtype)
                decoder(inputs_embeds=embedded, use_cache=False, **masks)
            failed = None
            break
        except Exception as error:  # whatever the model's own code makes of it
            failed = failed or error
    hooked.remove()
    return failed
