"""Channels of the projections that are queries, keys and values, identified by tracing.

Each value that a projection outputs gets a number. Operations that move values (a view, a slice, a
copy) move the numbers along. Operations that combine values (a norm, a rotation) record their
sources. The products of attention then identify the roles: scores are products of queries and
keys, and weights are multiplied with values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

from outlier_atlas.compat.torch_internals import is_in_place, operator_name

Role = Literal["q", "k", "v"]
"""Query, key or value."""

ATTENTION = "aten.scaled_dot_product_attention.default"
PAIRS = ("aten.mm.default", "aten.bmm.default", "aten.baddbmm.default", "aten.matmul.default")
"""Products of two matrices, which are the last two arguments."""
PRODUCTS = (*PAIRS, "aten.addmm.default", "aten.linear.default")
"""Matrix products."""
SOFTMAX = ("aten.softmax.int", "aten._softmax.default")
MOVES = (
    "aten._unsafe_view.default",
    "aten.index.Tensor",
    "aten.index_select.default",
    "aten.repeat_interleave.self_int",
)
"""Operations that move values. Views do so, too, except for those in `OTHER_VALUES`."""
CASTS = ("aten.to.", "aten._to_copy.")
OTHER_VALUES = ("aten.view_as_complex.default", "aten.view_as_real.default", "aten.view.dtype")
"""Views that read the same memory as other values."""
TURNS = ("transpose", "permute", "numpy_T", "mT", "swapaxes", "swapdims", "movedim", "moveaxis")
"""Operations that may turn rows into columns."""


class ListsOnHost(TorchFunctionMode):
    """Mode that converts lists of indices into tensors on the host, so that they have values."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__getitem__ and isinstance(args[1], tuple):
            lists = [torch.tensor(i) if isinstance(i, list) else i for i in args[1]]
            args = (args[0], tuple(lists))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class HeadChannels:
    """Channels of a projection's output that have one role.

    Attributes:
        module: path of the projection, relative to the block.
        channels: number of channels.
        ranges: first channel and end of each consecutive range, in the order of the heads; None if
            the projection outputs nothing else.
    """

    module: str
    channels: int
    ranges: tuple[tuple[int, int], ...] | None


@dataclass(frozen=True, eq=False)
class _MovedOutput:
    """Tensor whose values are values of a projection's output, moved only.

    Attributes:
        module: path of the projection.
        width: number of channels that the projection outputs.
        labels: for each value, its position in the projection's output.
    """

    module: str
    width: int
    labels: torch.Tensor

    @cached_property
    def channels(self) -> list[int]:
        """Channels of the first token, in the order of the tensor."""
        flat = self.labels.flatten()
        first: list[int] = flat[flat < self.width].tolist()
        return first


@dataclass(frozen=True)
class _Operand:
    """Operand of a product of attention.

    Attributes:
        sources: tensors that the operand was computed from.
        vectors: number of queries, keys or values in the operand, over all heads and tokens.
        size: channels of each vector.
    """

    sources: frozenset[_MovedOutput]
    vectors: int
    size: int


@dataclass(frozen=True)
class _Scores:
    """Tensor of scores (..., query, key).

    Attributes:
        queries: operand with the queries.
        keys: operand with the keys.
        weights: whether a softmax over the keys was applied.
    """

    queries: _Operand
    keys: _Operand
    weights: bool = False


class HeadTracer:
    """Tracer of the outputs of a block's projections up to the products of attention.

    Args:
        tokens: number of tokens in the forward pass, a batch of one sequence.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._sources: dict[int, frozenset[_MovedOutput]] = {}
        self._scores: dict[int, _Scores] = {}
        self._moved: dict[int, _MovedOutput] = {}
        self._labelled: set[int] = set()
        self._operands: dict[Role, list[_Operand]] = {"q": [], "k": [], "v": []}
        self._overwritten = False

    def start(self, module: str, output: torch.Tensor) -> None:
        """Label the values of a projection's output, unless an inner projection returned it."""
        if id(output) not in self._labelled:
            self._labelled.add(id(output))
            labels = torch.arange(output.numel()).reshape(output.shape)
            self._remember(output, _MovedOutput(module, output.shape[-1], labels))

    def trace(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any],
        inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor],
    ) -> None:  # fmt: skip
        """Trace an operation.

        Args:
            func: the operator.
            args: its positional arguments.
            kwargs: its keyword arguments.
            inputs: tensors among its arguments.
            outputs: tensors that it returns.
        """
        name = str(func)
        if name == ATTENTION:
            self._add_product(*(self._operand(tensor, -1) for tensor in args[:3]))
        elif name in PRODUCTS:
            if name in PAIRS:
                self._multiply(args[-2], args[-1], outputs[0])
        elif is_in_place(func):
            self._overwrite(args[0], inputs)
        else:
            self._pass_scores_on(func, args, inputs, outputs)
            if not self._move(func, args, kwargs, inputs, outputs):
                for tensor in outputs:
                    self._sources[id(tensor)] = self._sources_of(*inputs)

    def parts(self) -> dict[Role, HeadChannels]:
        """Return the channels of each role that could be identified."""
        return {
            role: part
            for role, operands in self._operands.items()
            if (part := self._part(operands))
        }

    def _part(self, operands: Sequence[_Operand]) -> HeadChannels | None:
        parts = {self._part_of(operand) for operand in operands}
        return parts.pop() if len(parts) == 1 else None

    def _part_of(self, operand: _Operand) -> HeadChannels | None:
        """Return the channels behind an operand, head by head; None if they are unclear."""
        if len({source.module for source in operand.sources}) != 1:
            return None
        source = next(iter(operand.sources))
        channels = {channel for moved in operand.sources for channel in moved.channels}
        orders = [
            moved.channels
            for moved in self._moved.values()
            if moved.module == source.module
            and len(moved.channels) == len(channels)
            and set(moved.channels) == channels
        ]
        if not orders or operand.vectors * operand.size % (len(channels) * self._tokens):
            return None
        order, size = orders[-1], operand.size
        heads = [order[first : first + size] for first in range(0, len(order), size)]
        # A head has consecutive channels; any other order was not understood.
        if any(head != list(range(head[0], head[0] + size)) for head in heads):
            return None
        ranges = _merge_adjacent([(head[0], head[-1] + 1) for head in heads])
        return HeadChannels(
            source.module, len(order), None if ranges == ((0, source.width),) else ranges
        )

    def _sources_of(self, *tensors: torch.Tensor) -> frozenset[_MovedOutput]:
        return frozenset().union(*(self._sources.get(id(t), frozenset()) for t in tensors))

    def _operand(self, tensor: torch.Tensor, axis: int) -> _Operand:
        size = tensor.shape[axis]
        return _Operand(self._sources_of(tensor), tensor.numel() // size, size)

    def _remember(self, tensor: torch.Tensor, moved: _MovedOutput) -> None:
        self._moved[id(tensor)] = moved
        self._sources[id(tensor)] = frozenset({moved})

    def _add_product(self, queries: _Operand, keys: _Operand, values: _Operand) -> None:
        for role, operand in zip(self._operands, (queries, keys, values), strict=True):
            self._operands[role].append(
                replace(operand, sources=frozenset()) if self._overwritten else operand
            )

    def _multiply(self, first: torch.Tensor, second: torch.Tensor, product: torch.Tensor) -> None:
        scores = self._scores.get(id(first))
        if scores and scores.weights:
            self._add_product(scores.queries, scores.keys, self._operand(second, -1))
        elif self._sources_of(first) and self._sources_of(second):
            self._scores[id(product)] = _Scores(self._operand(first, -1), self._operand(second, -2))

    def _overwrite(self, written: torch.Tensor, inputs: Sequence[torch.Tensor]) -> None:
        """Mark views into a tensor as unknown once other values are written into the tensor."""
        if not _channels(self._sources_of(*inputs)) <= _channels(self._sources_of(written)):
            self._overwritten = True

    def _pass_scores_on(
        self, func: Any, args: Sequence[Any], inputs: Sequence[torch.Tensor], outputs: Any
    ) -> None:
        scores = next((s for t in inputs if (s := self._scores.get(id(t)))), None)
        if scores is None or operator_name(func) in TURNS:
            return
        if str(func) in SOFTMAX:
            scores = replace(scores, weights=args[1] in (-1, args[0].dim() - 1))
        for tensor in outputs:
            self._scores[id(tensor)] = scores

    def _move(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any],
        inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor],
    ) -> bool:  # fmt: skip
        """Return whether each output value of an operation is one moved value of a projection."""
        moved, name = self._moved.get(id(args[0])) if args else None, str(func)
        if moved is None or any(tensor.is_meta for tensor in inputs[1:]):
            return False  # indices on the meta device have no values to move by
        if name.startswith(CASTS) or torch.Tag.pointwise in func.tags:
            labels: Any = moved.labels
        elif name in MOVES or (func.is_view and name not in OTHER_VALUES):
            labels = func(moved.labels, *args[1:], **kwargs)
        else:
            return False
        parts = [labels] if isinstance(labels, torch.Tensor) else labels
        for tensor, part in zip(outputs, parts, strict=True):
            self._remember(tensor, replace(moved, labels=part))
        return True


def _channels(sources: frozenset[_MovedOutput]) -> set[tuple[str, int]]:
    return {(moved.module, channel) for moved in sources for channel in moved.channels}


def _merge_adjacent(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the ranges, merging each one that begins where the previous one ends."""
    merged: list[tuple[int, int]] = []
    for first, stop in ranges:
        if merged and merged[-1][1] == first:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((first, stop))
    return tuple(merged)
