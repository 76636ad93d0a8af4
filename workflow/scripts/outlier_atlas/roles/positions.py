"""Limit on the tokens in a sequence, from the positions of a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import nn

from outlier_atlas.compat.torch_internals import own_buffers
from outlier_atlas.roles.residual_trace import accepts_length

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

KEYS = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length",
    "max_sequence_length", "max_target_positions", "seq_length",
)  # fmt: skip
"""Names of the number of positions in configurations."""

ADDED_ROWS = 2
"""Rows that a table may have in addition to its positions: OPT and BART have two."""

LONGEST_TRIED = 2**15
"""Tokens of the longest sequence that is tried on the meta device; its masks have as many rows."""


@dataclass(frozen=True)
class Positions:
    """Limit on the tokens in a sequence.

    Attributes:
        tokens: the largest number of tokens.
        key: entry of the configuration that states the limit.
        value: value of the entry.
        fixed: whether longer sequences cannot run. Otherwise they are longer than those that the
            model was trained on.
    """

    tokens: int
    key: str
    value: int
    fixed: bool


def find_positions(decoder: PreTrainedModel, text: PretrainedConfig) -> Positions | None:
    """Return the limit on the length of a sequence; None if the configuration states none.

    Args:
        decoder: decoder on the meta device.
        text: configuration of the decoder.
    """
    # The name of an entry in the file may differ from the attribute of the configuration.
    entries = [(text.attribute_map.get(key, key), getattr(text, key, None)) for key in KEYS]
    stated = [(key, value) for key, value in entries if type(value) is int and value > 0]
    axes = getattr(text, "axial_pos_shape", None)
    if axes and getattr(text, "axial_pos_embds", False):  # in Reformer a position has two parts
        number = prod(axes)
        return Positions(number, "the product of axial_pos_shape", number, fixed=True)
    for key, value in stated:
        usable = [rows for table in _tables(decoder) if (rows := _usable(table, value)) is not None]
        if usable:
            return Positions(min(usable), key, value, fixed=True)
    for key, value in stated:
        # A table that is built in the forward pass, such as MPT's ALiBi, limits the length, too.
        if (
            value < LONGEST_TRIED
            and accepts_length(decoder, value)
            and not accepts_length(decoder, value + 1)
        ):
            return Positions(value, key, value, fixed=True)
    return Positions(stated[0][1], *stated[0], fixed=False) if stated else None


def _tables(decoder: PreTrainedModel) -> Iterator[nn.Embedding | torch.Tensor]:
    """Yield the tensors that may be tables of positions."""
    words = decoder.get_input_embeddings()
    for module in decoder.modules():
        if module is words or hasattr(module, "make_weights"):
            continue  # the table grows with the sequence
        if isinstance(module, nn.Embedding):
            yield module
            continue
        tensors = [*own_buffers(module).values(), *vars(module).values()]
        yield from (tensor for tensor in tensors if isinstance(tensor, torch.Tensor))


def _usable(table: nn.Embedding | torch.Tensor, positions: int) -> int | None:
    """Return the number of tokens that a table has positions for; None if it is no such table."""
    if isinstance(table, nn.Embedding):
        if not 0 <= table.num_embeddings - positions <= ADDED_ROWS:
            return None
        # RoBERTa counts positions from the one after that of padding.
        padding = table.padding_idx
        return positions if padding is None else min(positions, table.num_embeddings - padding - 1)
    rows = [size for size in table.shape if 0 <= size - positions <= ADDED_ROWS]
    return positions if table.dim() > 1 and rows else None
