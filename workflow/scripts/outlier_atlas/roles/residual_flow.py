"""The flow through a decoder stack: which tensors a block adds to the residual stream, and whether
a block reads anything but the residual stream of the block before. See `residual_trace.py`."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field

import torch

from outlier_atlas.roles.attention_heads import HeadChannels, Role

OUTSIDE = -1
"""Stands for the layer of what no block has made."""


@dataclass(eq=False)
class Node:
    """A tensor.

    Attributes:
        layer: the block that made it; `OUTSIDE` for none.
        of_weights: whether weights or a block had a part in it; not so masks and positions.
        terms: what it is the sum of, if it is a sum.
        is_product: whether it is the result of a matrix product.
        shape, dtype: of the tensor.
    """

    layer: int
    of_weights: bool
    terms: tuple[Node, ...] = ()
    is_product: bool = False
    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None

    @property
    def is_projection(self) -> bool:
        """Whether it is the result of a matrix product, with or without a bias."""
        return any(node.is_product for node in (self, *self.terms))

    def summands(self, whole: Container[Node]) -> Iterator[Node]:
        """What it is the sum of in the end; those of `whole` are not taken apart."""
        if not self.terms or self in whole:
            yield self
            return
        for term in self.terms:
            yield from term.summands(whole)

    def sums(self, whole: Container[Node]) -> Iterator[Node]:
        """Itself and the sums on the way to the summands."""
        if self.terms and self not in whole:
            yield self
            for term in self.terms:
                yield from term.sums(whole)


@dataclass
class Call:
    """A module of a block as it was called.

    Attributes:
        given: the hidden states in; None where no tensor stands there.
        made: all tensors out, in order, the hidden states first; none where no tensor stands there.
        tensors: all tensors in, in order, without memory.
        given_shape, made_shape: of the hidden states in and out.
    """

    given: Node | None
    made: list[Node]
    tensors: list[torch.Tensor]
    given_shape: tuple[int, ...]
    made_shape: tuple[int, ...] = ()


@dataclass
class BlockFlow:
    """What was seen of a block.

    Attributes:
        given: the residual stream into it.
        made: the residual stream out of it.
        shape: of the residual stream into it.
        calls: its modules by path, those called once, in the order in which they were called.
        heads: which channels of which of its modules are queries, keys and values.
        attention: query heads of those of its modules, by path, whose attention can be followed.
        returned: of how many values the tuple is that it returns; 0 where it returns none.
    """

    given: Node
    made: Node
    shape: tuple[int, ...]
    calls: dict[str, Call]
    heads: dict[Role, HeadChannels]
    attention: dict[str, int]
    returned: int

    def whole(self) -> set[Node]:
        """What is not taken apart: the residual stream into it and what its modules made."""
        return {self.given, *(call.made[0] for call in self.calls.values() if call.made)}

    def summands(self) -> list[Node]:
        """What the residual stream out of the block is the sum of."""
        return list(self.made.summands(self.whole() - {self.made}))

    def contribution(self, path: str) -> str | None:
        """The module whose output is what the module at `path` adds to the residual stream.

        It is the module itself, or one that its output goes through: a norm behind it. None where
        what is added is made otherwise, such as by a factor.
        """
        call = self.calls.get(path)
        if call is None or not call.made:
            return None
        summands = self.summands()
        if sum(summand is self.given for summand in summands) != 1:
            return None  # the residual stream is not just added to
        node = call.made[0]
        for _ in range(3):
            if sum(node is summand for summand in summands) == 1:
                return path
            following = [
                (name, c)
                for name, c in self.calls.items()
                if "." not in name and c.given is node and c.made and c.made[0] is not node
            ]
            if len(following) != 1:
                return None
            path, node = following[0][0], following[0][1].made[0]
        return None

    def middle(self, mlp: str) -> str | None:
        """The module whose input is the residual stream between attention and the MLP at `mlp`.

        It is the norm before the MLP, or the MLP; None where there is no such place, because both
        read the residual stream into the block.
        """
        call = self.calls.get(mlp)
        if call is None:
            return None
        whole = self.whole() - {self.made}
        between = [
            node
            for node in self.made.sums(whole)
            if node is not self.made and any(s is self.given for s in node.summands(whole))
        ]
        if len(between) != 1:
            return None
        if call.given is between[0]:
            return mlp
        before = [
            name
            for name, c in self.calls.items()
            if "." not in name and c.given is between[0] and c.made and c.made[0] is call.given
        ]
        return before[0] if len(before) == 1 else None


@dataclass
class Flow:
    """What was seen of a decoder stack.

    Attributes:
        blocks: by layer.
        shared: the first layer that also reads something of another block or of the embeddings
            the residual stream; None if there is none.
        ends_apart: whether what follows the last block reads more than its output.
        channels: of what the model makes in the end.
        causal: for each call of an attention function, whether it is causal.
    """

    blocks: dict[int, BlockFlow] = field(default_factory=dict)
    shared: int | None = None
    ends_apart: bool = False
    channels: int = 0
    causal: list[bool] = field(default_factory=list)
