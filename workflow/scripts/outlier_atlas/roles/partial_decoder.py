"""Decoder that runs some of its layers; its other layers return their input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from outlier_atlas.compat.torch_internals import only_children

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PassThrough(nn.Module):
    """Replacement for a module that is not run; it returns its input.

    Args:
        replaced: the module.
        tuple_length: length of the tuple that the module returns; 0 if it returns a tensor.
    """

    def __init__(self, replaced: nn.Module | None = None, tuple_length: int = 0) -> None:
        super().__init__()
        # The model's forward reads attributes of its layers, such as `attention_type`.
        for name, value in vars(replaced).items() if replaced is not None else ():
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)
        self._tuple_length = tuple_length

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._tuple_length:
            return (hidden_states, *[None] * (self._tuple_length - 1))
        return hidden_states


def strip(
    decoder: PreTrainedModel,
    stack: str,
    layers: range,
    tuple_lengths: Sequence[int],
    embedding: bool,
) -> None:
    """Replace the layers that a layer group does not run with pass-through modules.

    Args:
        decoder: the text decoder.
        stack: path of its decoder stack.
        layers: layers that are run.
        tuple_lengths: for each layer, the length of the tuple that it returns.
        embedding: whether the decoder keeps its embedding.
    """
    blocks = decoder.get_submodule(stack)
    assert isinstance(blocks, nn.ModuleList)
    for index, block in enumerate(blocks):
        if index not in layers:
            blocks[index] = PassThrough(block, tuple_lengths[index])
    if not embedding:
        words = decoder.get_input_embeddings()
        path = next(path for path, module in decoder.named_modules() if module is words)
        decoder.set_submodule(path, PassThrough(words))


@contextmanager
def hide_unused_layers(decoder: nn.Module, stack: str) -> Iterator[None]:
    """Hide the pass-through layers from code that iterates over the decoder stack in the block."""
    with only_children(decoder.get_submodule(stack), lambda c: not isinstance(c, PassThrough)):
        yield


def placeholder_embeddings(
    boundary: torch.Tensor, channels: int, dtype: torch.dtype
) -> torch.Tensor:
    """Return embeddings for a decoder whose hidden states a boundary replaces.

    The model derives the shapes of masks and positions from them. Their values are not used.

    Args:
        boundary: residual stream at the boundary, (batch, token, channel).
        channels: channels of an embedding, which may be fewer than those of the residual stream.
        dtype: dtype of the forward pass.
    """
    return boundary.new_zeros((*boundary.shape[:2], channels), dtype=dtype)
