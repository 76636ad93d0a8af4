"""How many tokens a model has positions for, where its positions end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import nn

from outlier_atlas.compat.torch_internals import own_buffers
from outlier_atlas.roles.residual_trace import runs

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

KEYS = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length",
    "max_sequence_length", "max_target_positions", "seq_length",
)  # fmt: skip
"""What configurations call the number of positions."""

ADDED_ROWS = 2
"""A table may have some more rows than positions: OPT and BART keep two."""

LONGEST_TRIED = 2**15
"""Tokens of the longest trial without memory; its masks have that many rows."""


@dataclass(frozen=True)
class Positions:
    """The most tokens in a sequence.

    Attributes:
        tokens: how many.
        key, value: the entry of the configuration that says so.
        fixed: whether a longer sequence has no positions at all; otherwise it is only longer than
            the model was trained for.
    """

    tokens: int
    key: str
    value: int
    fixed: bool


def find_positions(decoder: PreTrainedModel, text: PretrainedConfig) -> Positions | None:
    """The limit on a sequence's length; None where the configuration states none.

    Args:
        decoder: on the meta device.
        text: its configuration.
    """
    # Some files have another name for an entry than the attribute of the configuration.
    named = [(text.attribute_map.get(key, key), getattr(text, key, None)) for key in KEYS]
    stated = [(key, value) for key, value in named if type(value) is int and value > 0]
    axes = getattr(text, "axial_pos_shape", None)
    if axes and getattr(text, "axial_pos_embds", False):  # Reformer's: a position has two parts
        number = prod(axes)
        return Positions(number, "the product of axial_pos_shape", number, fixed=True)
    for key, value in stated:
        usable = [rows for table in _tables(decoder) if (rows := _usable(table, value)) is not None]
        if usable:
            return Positions(min(usable), key, value, fixed=True)
    for key, value in stated:
        # A table that is made as the model runs, such as MPT's ALiBi, is too small for more.
        if value < LONGEST_TRIED and runs(decoder, value) and not runs(decoder, value + 1):
            return Positions(value, key, value, fixed=True)
    return Positions(stated[0][1], *stated[0], fixed=False) if stated else None


def _tables(decoder: PreTrainedModel) -> Iterator[nn.Embedding | torch.Tensor]:
    words = decoder.get_input_embeddings()
    for module in decoder.modules():
        if module is words or hasattr(module, "make_weights"):
            continue  # a table that grows with the sequence
        if isinstance(module, nn.Embedding):
            yield module
            continue
        held = [*own_buffers(module).values(), *vars(module).values()]
        yield from (tensor for tensor in held if isinstance(tensor, torch.Tensor))


def _usable(table: nn.Embedding | torch.Tensor, positions: int) -> int | None:
    """The tokens that a table has positions for; None where it is no table of positions."""
    if isinstance(table, nn.Embedding):
        if not 0 <= table.num_embeddings - positions <= ADDED_ROWS:
            return None
        # RoBERTa counts positions from behind the one of padding.
        padding = table.padding_idx
        return positions if padding is None else min(positions, table.num_embeddings - padding - 1)
    rows = [size for size in table.shape if 0 <= size - positions <= ADDED_ROWS]
    return positions if table.dim() > 1 and rows else None
