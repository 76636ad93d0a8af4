"""Where the residual stream goes: a forward pass without memory or numbers, watched.

The model runs on the meta device. Each tensor that is made stands as a node; sums remember what
they are sums of. So it can be told for sure, and for any architecture, which tensor a block adds to
the residual stream, and whether blocks read anything but the residual stream of the one before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from outlier_atlas.model.attention import AttentionCall, attention_seen
from outlier_atlas.model.heads import PRODUCTS, Heads, ListsOnHost, Part, Role

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 8
"""Tokens of the watched forward pass."""

SUMS = ("aten.add.Tensor", "aten.add_.Tensor")
VIEWS = (
    "aten.view.default",
    "aten._unsafe_view.default",
    "aten.reshape.default",
    "aten.alias.default",
    "aten.contiguous.default",
    "aten.clone.default",
)
"""What gives the same values; so does a dropout that is off."""
DROPOUT = "aten.dropout.default"

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
        given: the hidden states in.
        made: all tensors out, in order.
        tensors: all tensors in, in order, without memory.
    """

    given: Node | None
    made: list[Node]
    tensors: list[torch.Tensor]


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
    """

    given: Node
    made: Node
    shape: tuple[int, ...]
    calls: dict[str, Call]
    heads: dict[Role, Part]
    attention: dict[str, int]

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
        shared: the first layer that reads something of another block or of the embeddings besides
            the residual stream; None if there is none.
        ends_apart: whether what follows the last block reads more than its output.
    """

    blocks: dict[int, BlockFlow] = field(default_factory=dict)
    shared: int | None = None
    ends_apart: bool = False


def watch(model: PreTrainedModel, stack: nn.ModuleList) -> Flow | None:
    """Run a model on the meta device and say what was seen; None where it cannot run there.

    Args:
        model: the base model, on the meta device.
        stack: its decoder blocks.
    """
    # Most models make a mask from values, which the meta device has not, unless they are given one
    # in full; those that want another kind are tried without.
    mask = torch.zeros((1, 1, TOKENS, TOKENS), dtype=model.dtype, device="meta")
    for masks in ({"attention_mask": mask}, {}):
        watcher = _Watcher(model, stack)
        try:
            with ListsOnHost(), attention_seen(watcher.see), watcher, torch.inference_mode():
                ids = torch.zeros((1, TOKENS), dtype=torch.long, device="meta")
                model(input_ids=ids, use_cache=False, **masks)
        except Exception:
            continue
        if len(watcher.flow.blocks) == len(stack):
            return watcher.flow
    return None


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes the nodes while the model runs."""

    def __init__(self, model: nn.Module, stack: nn.ModuleList) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = Flow()
        self._model, self._stack = model, stack
        self._layer = OUTSIDE
        self._nodes: dict[int, Node] = {}
        self._alive: list[torch.Tensor] = []  # so that no id is given twice
        self._hidden: Node | None = None
        self._shape: tuple[int, ...] = ()
        self._calls: dict[str, Call | None] = {}
        self._heads = Heads(TOKENS)
        self._attention: list[AttentionCall] = []
        self._handles: list[Any] = []

    def see(self, call: AttentionCall) -> None:
        """Take note of a call of an attention function."""
        self._attention.append(call)

    def __enter__(self) -> _Watcher:
        for layer, block in enumerate(self._stack):
            for path, module in block.named_modules():
                before, after = self._hooks(layer, path)
                self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                self._handles.append(module.register_forward_hook(after))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = list(tensors_in((args, kwargs)))
        taken = [self._node(tensor) for tensor in given]
        result = func(*args, **(kwargs or {}))
        self._look_for_shared(taken)
        self._heads.follow(func, args, kwargs or {}, given, list(tensors_in(result)))
        name = str(func)
        same = name in VIEWS or (name == DROPOUT and args[2] is False)
        for tensor in tensors_in(result):
            if same:
                self._remember(tensor, taken[0])
                continue
            of_weights = any(node.of_weights for node in taken)
            node = Node(self._layer, of_weights, shape=tuple(tensor.shape), dtype=tensor.dtype)
            if name in SUMS and len(taken) == 2 and kwargs in (None, {}):
                node.terms = (taken[0], taken[1])
            node.is_product = name in PRODUCTS
            self._remember(tensor, node)
        return result

    def _look_for_shared(self, taken: Sequence[Node]) -> None:
        if self._layer == OUTSIDE or self.flow.shared is not None:
            return
        for node in taken:
            if node.of_weights and node.layer != self._layer and node is not self._hidden:
                if self._layer < len(self._stack):
                    self.flow.shared = self._layer
                else:
                    self.flow.ends_apart = True

    def _node(self, tensor: torch.Tensor) -> Node:
        node = self._nodes.get(id(tensor))
        if node is None:
            # A weight belongs to whoever uses it; anything else that nobody made is an input.
            is_weight = isinstance(tensor, nn.Parameter)
            layer = self._layer if is_weight else OUTSIDE
            node = Node(layer, is_weight, shape=tuple(tensor.shape), dtype=tensor.dtype)
            if not is_weight:
                self._remember(tensor, node)
        return node

    def _remember(self, tensor: torch.Tensor, node: Node) -> None:
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)

    def _hooks(self, layer: int, path: str) -> tuple[Any, Any]:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            hidden = kwargs.get("hidden_states")
            tensors = [hidden] if hidden is not None else list(tensors_in((args, kwargs)))
            given = self._node(tensors[0]) if tensors else None
            if not path:
                self._layer, self._hidden, self._calls = layer, given, {}
                self._heads, self._attention = Heads(TOKENS), []
                self._shape = tuple(tensors[0].shape) if tensors else ()
            # Of a module that is called twice nobody knows which call is meant.
            call = Call(given, [], list(tensors_in((args, kwargs))))
            self._calls[path] = None if path in self._calls else call

        def after(module: nn.Module, args: Any, output: Any) -> None:
            tensors = [*tensors_in(output)]
            made = [self._node(tensor) for tensor in tensors]
            call = self._calls.get(path)
            if call is not None:
                call.made = made
            if made and made[0].is_projection:
                self._heads.begin(path, tensors[0])
            if not path:
                self._close(layer, made)

        return before, after

    def _close(self, layer: int, made: Sequence[Node]) -> None:
        calls = {path: call for path, call in self._calls.items() if call is not None and path}
        heads = {role: part for role, part in self._heads.parts().items() if part.module in calls}
        if self._hidden is not None and made:
            self.flow.blocks[layer] = BlockFlow(
                self._hidden, made[0], self._shape, calls, heads, self._followed(layer)
            )
        self._layer = OUTSIDE
        if layer + 1 == len(self._stack) and made:
            self._layer, self._hidden = layer + 1, made[0]

    def _followed(self, layer: int) -> dict[str, int]:
        paths = {module: path for path, module in self._stack[layer].named_modules()}
        seen = Counter(call.module for call in self._attention)
        return {
            paths[call.module]: call.heads
            for call in self._attention
            if seen[call.module] == 1 and call.module in paths and call.followed()
        }


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested containers, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
