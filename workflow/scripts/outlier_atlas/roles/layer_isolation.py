"""Check that each layer of a decoder runs without the other layers, on the meta device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from outlier_atlas.roles import hidden_states
from outlier_atlas.roles.attention_heads import ListsOnHost
from outlier_atlas.roles.partial_decoder import placeholder_embeddings, strip
from outlier_atlas.roles.residual_flow import Flow
from outlier_atlas.roles.residual_trace import TOKENS, masks_to_try
from outlier_atlas.roles.state import fixed_rotation
from outlier_atlas.sanitize import gist

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_dependent_layer(
    decoder: PreTrainedModel, stack: str, flow: Flow, channels: int
) -> str | None:
    """Return which layer does not run without earlier layers, and why; None if all do.

    One layer is tried for each set of layers that consist of the same modules. A boundary replaces
    its hidden states.

    Args:
        decoder: decoder on the meta device; pass-through modules replace its layers.
        stack: path of its decoder stack.
        flow: trace of the decoder.
        channels: channels of an embedding.
    """
    blocks = decoder.get_submodule(stack)
    assert isinstance(blocks, nn.ModuleList)
    layers = list(blocks)
    tuple_lengths = [flow.blocks[index].tuple_length for index in range(len(layers))]
    strip(decoder, stack, range(0), tuple_lengths, embedding=False)
    kinds = {_kind(layers[index]): index for index in range(len(layers) - 1, 0, -1)}
    for index in kinds.values():
        pass_through, blocks[index] = blocks[index], layers[index]
        block = flow.blocks[index]
        boundary = torch.zeros(block.shape, dtype=block.input.dtype, device="meta")
        failed = _failure(decoder, layers[index], boundary, channels)
        blocks[index] = pass_through
        if failed is not None:
            name = type(decoder).__name__
            return f"layer {index} of {name} does not run without earlier layers ({gist(failed)})"
    return None


def _kind(layer: nn.Module) -> tuple[tuple[str, str], ...]:
    """Return the paths and classes of a layer's modules."""
    return tuple((path, type(module).__name__) for path, module in layer.named_modules())


def _failure(
    decoder: PreTrainedModel, layer: nn.Module, boundary: torch.Tensor, channels: int
) -> Exception | None:
    """Return the error of a layer that is called with a boundary; None if it runs."""

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return hidden_states.replace_argument(boundary, args, kwargs)

    hook = layer.register_forward_pre_hook(enter, with_kwargs=True)
    failed: Exception | None = None
    dtype = decoder.config.dtype
    for masks in masks_to_try(TOKENS, dtype):
        try:
            with ListsOnHost(), fixed_rotation(decoder), torch.inference_mode():
                embeddings = placeholder_embeddings(boundary, channels, dtype)
                decoder(inputs_embeds=embeddings, use_cache=False, **masks)
            failed = None
            break
        except Exception as error:  # the model's code may raise errors of any type
            failed = failed or error
    hook.remove()
    return failed
