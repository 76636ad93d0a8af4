"""A trace of the residual stream through a forward pass that has neither memory nor numbers.

The model runs on the meta device. Each tensor becomes a node of a graph, and sums keep references
to their terms. The graph answers what `residual_flow.py` asks, for any architecture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from outlier_atlas.compat.torch_internals import TorchDispatchMode
from outlier_atlas.roles import hidden_states
from outlier_atlas.roles.attention import AttentionCall, attention_seen
from outlier_atlas.roles.attention_heads import PRODUCTS, Heads, ListsOnHost
from outlier_atlas.roles.pytree import tensors_in
from outlier_atlas.roles.residual_flow import OUTSIDE, BlockFlow, Call, Flow, Node
from outlier_atlas.roles.state import fixed_rotation

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


def masks_to_try(tokens: int, dtype: torch.dtype) -> Iterator[dict[str, torch.Tensor]]:
    """Arguments of a forward pass on the meta device; some models take one, some the other.

    Most make a mask from values, which the meta device has not, unless they are given one in full;
    those that want another kind are tried without.
    """
    yield {"attention_mask": torch.zeros((1, 1, tokens, tokens), dtype=dtype, device="meta")}
    yield {}


def watch(model: PreTrainedModel, stack: nn.ModuleList) -> Flow | None:
    """Run a model on the meta device and say what was seen; None where it cannot run there.

    Args:
        model: the base model, on the meta device.
        stack: its decoder blocks.
    """
    for masks in masks_to_try(TOKENS, model.dtype):
        watcher = _Watcher(model, stack)
        try:
            with (
                ListsOnHost(), fixed_rotation(model), attention_seen(watcher.see), watcher,
                torch.inference_mode(),
            ):  # fmt: skip
                ids = torch.zeros((1, TOKENS), dtype=torch.long, device="meta")
                made = hidden_states.made(model(input_ids=ids, use_cache=False, **masks))
        except Exception:
            continue
        if made is not None:
            watcher.flow.channels = made.shape[-1]
            return watcher.flow
    return None


def runs(model: PreTrainedModel, tokens: int) -> bool:
    """Whether a model on the meta device runs over a sequence of so many tokens."""
    for masks in masks_to_try(tokens, model.dtype):
        try:
            with ListsOnHost(), fixed_rotation(model), torch.inference_mode():
                ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
                model(input_ids=ids, use_cache=False, **masks)
            return True
        except Exception:
            continue
    return False


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
        self.flow.causal.append(call.causal)

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
            # A weight belongs to its user; any other tensor that no operator made is an input.
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
            hidden = hidden_states.given(args, kwargs)
            given = None if hidden is None else self._node(hidden)
            shape = () if hidden is None else tuple(hidden.shape)
            if not path:
                self._layer, self._hidden, self._calls = layer, given, {}
                self._heads, self._attention = Heads(TOKENS), []
                self._shape = shape
            # A module that is called twice is ambiguous.
            call = Call(given, [], list(tensors_in((args, kwargs))), shape)
            self._calls[path] = None if path in self._calls else call

        def after(module: nn.Module, args: Any, output: Any) -> None:
            tensors = [] if hidden_states.made(output) is None else [*tensors_in(output)]
            made = [self._node(tensor) for tensor in tensors]
            call = self._calls.get(path)
            if call is not None:
                call.made, call.made_shape = made, tuple(tensors[0].shape) if tensors else ()
            if made and made[0].is_projection:
                self._heads.begin(path, tensors[0])
            if not path:
                self._close(layer, made, len(output) if isinstance(output, list | tuple) else 0)

        return before, after

    def _close(self, layer: int, made: Sequence[Node], returned: int) -> None:
        calls = {path: call for path, call in self._calls.items() if call is not None and path}
        heads = {role: part for role, part in self._heads.parts().items() if part.module in calls}
        if self._hidden is not None and made:
            self.flow.blocks[layer] = BlockFlow(
                self._hidden, made[0], self._shape, calls, heads, self._followed(layer), returned
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
