"""A decoder that runs some of its layers: all else of it hands on what it is given."""

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
    """Stands where a module would be that is not wanted, and hands its input on.

    Args:
        replaced: the module.
        returned: of how many values the tuple is that it returns; 0 where it returns none.
    """

    def __init__(self, replaced: nn.Module | None = None, returned: int = 0) -> None:
        super().__init__()
        # The model's forward asks its layers for such things (`attention_type`, for the mask).
        for name, value in vars(replaced).items() if replaced is not None else ():
            if not name.startswith("_") and name != "training":
                setattr(self, name, value)
        self._returned = returned

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._returned:
            return (hidden_states, *[None] * (self._returned - 1))
        return hidden_states


def strip(
    decoder: PreTrainedModel, stack: str, layers: range, returned: Sequence[int], embedding: bool
) -> None:
    """Put a pass-through module in place of what a layer group does not run.

    Args:
        decoder: the text decoder.
        stack: path of its decoder stack.
        layers: those that are run.
        returned: by layer, of how many values the tuple is that it returns.
        embedding: whether it keeps its embedding.
    """
    blocks = decoder.get_submodule(stack)
    assert isinstance(blocks, nn.ModuleList)
    for index, block in enumerate(blocks):
        if index not in layers:
            blocks[index] = PassThrough(block, returned[index])
    if not embedding:
        words = decoder.get_input_embeddings()
        path = next(path for path, module in decoder.named_modules() if module is words)
        decoder.set_submodule(path, PassThrough(words))


@contextmanager
def loaded_alone(decoder: nn.Module, stack: str) -> Iterator[None]:
    """Hide the layers that do not run from whatever goes through the decoder stack in the block."""
    with only_children(decoder.get_submodule(stack), lambda c: not isinstance(c, PassThrough)):
        yield


def dummy(boundary: torch.Tensor, channels: int, dtype: torch.dtype) -> torch.Tensor:
    """What a decoder is given as embeddings where the boundary replaces its hidden states.

    It gives the model the shapes that it makes masks and positions from.

    Args:
        boundary: (batch, token, channel).
        channels: of an embedding, which may be narrower than the residual stream.
        dtype: in which the model computes.
    """
    return boundary.new_zeros((*boundary.shape[:2], channels), dtype=dtype)
