"""Which channels of which projection are queries, keys and values, by the way they go.

The values that a projection makes are numbered. What moves them (a view, a slice, a copy) moves the
numbers along; what computes with several (a norm, a rotation) remembers which. The products of
attention then tell: scores are made of queries and keys, and what they weigh are values.
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

ATTENTION = "aten.scaled_dot_product_attention.default"
PAIRS = ("aten.mm.default", "aten.bmm.default", "aten.baddbmm.default", "aten.matmul.default")
PRODUCTS = (*PAIRS, "aten.addmm.default", "aten.linear.default")
"""Matrix products; those of pairs have the two factors as their last arguments."""
SOFTMAX = ("aten.softmax.int", "aten._softmax.default")
MOVES = (
    "aten._unsafe_view.default",
    "aten.index.Tensor",
    "aten.index_select.default",
    "aten.repeat_interleave.self_int",
)
"""What moves values; so do views, but for those that read other values in them."""
CASTS = ("aten.to.", "aten._to_copy.")
OTHER_VALUES = ("aten.view_as_complex.default", "aten.view_as_real.default", "aten.view.dtype")
TURNS = ("transpose", "permute", "numpy_T", "mT", "swapaxes", "swapdims", "movedim", "moveaxis")
"""What may make rows of columns."""


class ListsOnHost(TorchFunctionMode):
    """Makes tensors of the lists that others are indexed by, so that they have values on meta."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__getitem__ and isinstance(args[1], tuple):
            lists = [torch.tensor(i) if isinstance(i, list) else i for i in args[1]]
            args = (args[0], tuple(lists))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class HeadChannels:
    """Channels of what a projection makes.

    Attributes:
        module: path of the projection, seen from the block.
        channels: how many.
        runs: first channel and the one after the last of each run of them, in the order of the
            heads; None where the projection makes nothing else.
    """

    module: str
    channels: int
    runs: tuple[tuple[int, int], ...] | None


@dataclass(frozen=True, eq=False)
class _Moved:
    """A tensor each of whose values comes from one value that a projection has made.

    Attributes:
        module: path of the projection.
        width: channels that it makes.
        labels: for each value the place in the projection's output that it comes from.
    """

    module: str
    width: int
    labels: torch.Tensor

    @cached_property
    def channels(self) -> list[int]:
        """The channels of the first token, in the order in which the tensor has them."""
        flat = self.labels.flatten()
        first: list[int] = flat[flat < self.width].tolist()
        return first


@dataclass(frozen=True)
class _Operand:
    """What a product of attention is given.

    Attributes:
        sources: what it was computed from.
        vectors: number of queries, keys or values in it, over all heads and tokens.
        size: of each.
    """

    sources: frozenset[_Moved]
    vectors: int
    size: int


@dataclass(frozen=True)
class _Scores:
    """A tensor (..., query, key) of scores; `weights` once a softmax over the keys made some."""

    queries: _Operand
    keys: _Operand
    weights: bool = False


class Heads:
    """Follows what the projections of a block make to the products of attention.

    Args:
        tokens: of the forward pass, in a batch of one sequence.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._sources: dict[int, frozenset[_Moved]] = {}
        self._scores: dict[int, _Scores] = {}
        self._moved: dict[int, _Moved] = {}
        self._begun: set[int] = set()
        self._met: dict[Role, list[_Operand]] = {"q": [], "k": [], "v": []}
        self._lost = False

    def begin(self, module: str, made: torch.Tensor) -> None:
        """Number what a projection has made, unless a projection within it has made it."""
        if id(made) not in self._begun:
            self._begun.add(id(made))
            labels = torch.arange(made.numel()).reshape(made.shape)
            self._remember(made, _Moved(module, made.shape[-1], labels))

    def follow(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any],
        taken: Sequence[torch.Tensor], made: Sequence[torch.Tensor],
    ) -> None:  # fmt: skip
        """See an operation.

        Args:
            taken: the tensors among its arguments.
            made: the tensors that it gives.
        """
        name = str(func)
        if name == ATTENTION:
            self._meet(*(self._operand(tensor, -1) for tensor in args[:3]))
        elif name in PRODUCTS:
            if name in PAIRS:
                self._multiply(args[-2], args[-1], made[0])
        elif is_in_place(func):
            self._overwrite(args[0], taken)
        else:
            self._pass_scores_on(func, args, taken, made)
            if not self._move(func, args, kwargs, taken, made):
                for tensor in made:
                    self._sources[id(tensor)] = self._of(*taken)

    def parts(self) -> dict[Role, HeadChannels]:
        """What could be told for sure."""
        return {role: part for role, met in self._met.items() if (part := self._part(met))}

    def _part(self, met: Sequence[_Operand]) -> HeadChannels | None:
        found = {self._part_of(operand) for operand in met}
        return found.pop() if len(found) == 1 else None

    def _part_of(self, operand: _Operand) -> HeadChannels | None:
        """The channels behind an operand, head after head."""
        if len({source.module for source in operand.sources}) != 1:
            return None
        source = next(iter(operand.sources))
        wanted = {channel for moved in operand.sources for channel in moved.channels}
        orders = [
            moved.channels
            for moved in self._moved.values()
            if moved.module == source.module
            and len(moved.channels) == len(wanted)
            and set(moved.channels) == wanted
        ]
        if not orders or operand.vectors * operand.size % (len(wanted) * self._tokens):
            return None
        order, size = orders[-1], operand.size
        heads = [order[first : first + size] for first in range(0, len(order), size)]
        # A head is a run of consecutive channels; what looks otherwise was not understood.
        if any(head != list(range(head[0], head[0] + size)) for head in heads):
            return None
        runs = _joined([(head[0], head[-1] + 1) for head in heads])
        return HeadChannels(
            source.module, len(order), None if runs == ((0, source.width),) else runs
        )

    def _of(self, *tensors: torch.Tensor) -> frozenset[_Moved]:
        return frozenset().union(*(self._sources.get(id(t), frozenset()) for t in tensors))

    def _operand(self, tensor: torch.Tensor, axis: int) -> _Operand:
        size = tensor.shape[axis]
        return _Operand(self._of(tensor), tensor.numel() // size, size)

    def _remember(self, tensor: torch.Tensor, moved: _Moved) -> None:
        self._moved[id(tensor)] = moved
        self._sources[id(tensor)] = frozenset({moved})

    def _meet(self, queries: _Operand, keys: _Operand, values: _Operand) -> None:
        for role, operand in zip(self._met, (queries, keys, values), strict=True):
            self._met[role].append(replace(operand, sources=frozenset()) if self._lost else operand)

    def _multiply(self, first: torch.Tensor, second: torch.Tensor, made: torch.Tensor) -> None:
        scores = self._scores.get(id(first))
        if scores and scores.weights:
            self._meet(scores.queries, scores.keys, self._operand(second, -1))
        elif self._of(first) and self._of(second):
            self._scores[id(made)] = _Scores(self._operand(first, -1), self._operand(second, -2))

    def _overwrite(self, written: torch.Tensor, taken: Sequence[torch.Tensor]) -> None:
        """Mark views into a tensor as unknown once other values were written into it."""
        if not _channels(self._of(*taken)) <= _channels(self._of(written)):
            self._lost = True

    def _pass_scores_on(
        self, func: Any, args: Sequence[Any], taken: Sequence[torch.Tensor], made: Any
    ) -> None:
        scores = next((s for t in taken if (s := self._scores.get(id(t)))), None)
        if scores is None or operator_name(func) in TURNS:
            return
        if str(func) in SOFTMAX:
            scores = replace(scores, weights=args[1] in (-1, args[0].dim() - 1))
        for tensor in made:
            self._scores[id(tensor)] = scores

    def _move(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any],
        taken: Sequence[torch.Tensor], made: Sequence[torch.Tensor],
    ) -> bool:  # fmt: skip
        """Whether each value that an operation gives comes from one value of a projection."""
        moved, name = self._moved.get(id(args[0])) if args else None, str(func)
        if moved is None or any(tensor.is_meta for tensor in taken[1:]):
            return False  # also if it moves by indices, which have no values here
        if name.startswith(CASTS) or torch.Tag.pointwise in func.tags:
            labels: Any = moved.labels
        elif name in MOVES or (func.is_view and name not in OTHER_VALUES):
            labels = func(moved.labels, *args[1:], **kwargs)
        else:
            return False
        parts = [labels] if isinstance(labels, torch.Tensor) else labels
        for tensor, part in zip(made, parts, strict=True):
            self._remember(tensor, replace(moved, labels=part))
        return True


def _channels(sources: frozenset[_Moved]) -> set[tuple[str, int]]:
    return {(moved.module, channel) for moved in sources for channel in moved.channels}


def _joined(runs: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Runs, with each that begins where the one before ends made one with it."""
    joined: list[tuple[int, int]] = []
    for first, stop in runs:
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((first, stop))
    return tuple(joined)
