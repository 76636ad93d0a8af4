"""Flow of the residual stream through a decoder stack; see `residual_trace.py`.

It answers which tensors a block adds to the residual stream, and whether a block reads anything
but the output of the previous block.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field

import torch

from outlier_atlas.roles.attention_heads import HeadChannels, Role

OUTSIDE = -1
"""Layer of nodes that no block computes."""


@dataclass(eq=False)
class Node:
    """Tensor in the graph of a traced forward pass.

    Attributes:
        layer: layer of the block that computes the tensor; `OUTSIDE` without one.
        depends_on_weights: whether the tensor depends on weights or on a block; masks and positions
            do not.
        terms: the two terms of a sum; empty for other operations.
        is_product: whether the tensor is the result of a matrix product.
        shape: shape of the tensor.
        dtype: dtype of the tensor.
    """

    layer: int
    depends_on_weights: bool
    terms: tuple[Node, ...] = ()
    is_product: bool = False
    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None

    @property
    def is_projection(self) -> bool:
        """Whether the tensor is the result of a matrix product, with or without a bias."""
        return any(node.is_product for node in (self, *self.terms))

    def summands(self, atoms: Container[Node]) -> Iterator[Node]:
        """Yield the summands of the tensor; nodes in `atoms` are not decomposed further."""
        if not self.terms or self in atoms:
            yield self
            return
        for term in self.terms:
            yield from term.summands(atoms)

    def sums(self, atoms: Container[Node]) -> Iterator[Node]:
        """Yield the tensor and the sums between it and its summands."""
        if self.terms and self not in atoms:
            yield self
            for term in self.terms:
                yield from term.sums(atoms)


@dataclass
class Call:
    """Traced call of a module in a block.

    Attributes:
        input: hidden states among the arguments; None if there are none.
        outputs: tensors among the results, in order, the hidden states first; empty if the first
            result is no tensor.
        tensors: tensors among the arguments, in order, on the meta device.
        input_shape: shape of the hidden states among the arguments.
        output_shape: shape of the hidden states among the results.
    """

    input: Node | None
    outputs: list[Node]
    tensors: list[torch.Tensor]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...] = ()


@dataclass
class BlockFlow:
    """Trace of a block.

    Attributes:
        input: residual stream into the block.
        output: residual stream out of the block.
        shape: shape of the residual stream into the block.
        calls: calls by module path, in order, of the modules that are called once.
        heads: channels of the projections that are queries, keys and values.
        attention: number of query heads of each traceable attention module, by path.
        tuple_length: length of the tuple that the block returns; 0 if it returns a tensor.
    """

    input: Node
    output: Node
    shape: tuple[int, ...]
    calls: dict[str, Call]
    heads: dict[Role, HeadChannels]
    attention: dict[str, int]
    tuple_length: int

    def atoms(self) -> set[Node]:
        """Return the nodes that are not decomposed: the block's input and its modules' outputs."""
        return {self.input, *(call.outputs[0] for call in self.calls.values() if call.outputs)}

    def summands(self) -> list[Node]:
        """Return the summands of the residual stream out of the block."""
        return list(self.output.summands(self.atoms() - {self.output}))

    def contribution(self, path: str) -> str | None:
        """Return the module whose output is what the module at `path` adds to the residual stream.

        It is the module itself, or a later module that its output passes through, such as a norm.

        Returns:
            Path of the module. None if the summand is computed in another way, such as by a factor.
        """
        call = self.calls.get(path)
        if call is None or not call.outputs:
            return None
        summands = self.summands()
        if sum(summand is self.input for summand in summands) != 1:
            return None  # the block does not add to its input exactly once
        node = call.outputs[0]
        for _ in range(3):
            if sum(node is summand for summand in summands) == 1:
                return path
            following = [
                (name, c)
                for name, c in self.calls.items()
                if "." not in name and c.input is node and c.outputs and c.outputs[0] is not node
            ]
            if len(following) != 1:
                return None
            path, node = following[0][0], following[0][1].outputs[0]
        return None

    def middle(self, mlp: str) -> str | None:
        """Return the module whose input is the residual stream between attention and the MLP.

        It is the norm before the MLP, or the MLP itself.

        Args:
            mlp: path of the MLP.

        Returns:
            Path of the module. None if there is no such point, because attention and the MLP both
            read the block's input.
        """
        call = self.calls.get(mlp)
        if call is None:
            return None
        atoms = self.atoms() - {self.output}
        between = [
            node
            for node in self.output.sums(atoms)
            if node is not self.output and any(s is self.input for s in node.summands(atoms))
        ]
        if len(between) != 1:
            return None
        if call.input is between[0]:
            return mlp
        before = [
            name
            for name, c in self.calls.items()
            if "." not in name
            and c.input is between[0]
            and c.outputs
            and c.outputs[0] is call.input
        ]
        return before[0] if len(before) == 1 else None


@dataclass
class Flow:
    """Trace of a decoder stack.

    Attributes:
        blocks: traces of the blocks by layer.
        shared: first layer that also reads a tensor of another block or of the embeddings, other
            than the residual stream; None if there is none.
        end_reads_more: whether the part after the last block reads more than that block's output.
        channels: channels of the model's output.
        causal: for each call of an attention function, whether it is causal.
    """

    blocks: dict[int, BlockFlow] = field(default_factory=dict)
    shared: int | None = None
    end_reads_more: bool = False
    channels: int = 0
    causal: list[bool] = field(default_factory=list)
