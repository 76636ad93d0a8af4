"""Trace of the residual stream through a forward pass on the meta device.

The forward pass needs no memory and computes no numbers. Each tensor becomes a node of a graph, and
sums keep references to their terms. The graph answers the questions of `residual_flow.py` for any
architecture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from outlier_atlas.compat.torch_internals import TorchDispatchMode
from outlier_atlas.roles import hidden_states
from outlier_atlas.roles.attention import AttentionCall, observe_attention
from outlier_atlas.roles.attention_heads import PRODUCTS, HeadTracer, ListsOnHost
from outlier_atlas.roles.pytree import tensors_in
from outlier_atlas.roles.residual_flow import OUTSIDE, BlockFlow, Call, Flow, Node
from outlier_atlas.roles.state import fixed_rotation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 8
"""Number of tokens in the traced forward pass."""

SUMS = ("aten.add.Tensor", "aten.add_.Tensor")
"""Operators that add two tensors."""
VIEWS = (
    "aten.view.default",
    "aten._unsafe_view.default",
    "aten.reshape.default",
    "aten.alias.default",
    "aten.contiguous.default",
    "aten.clone.default",
)
"""Operators that return the same values; a dropout that is off does so, too."""
DROPOUT = "aten.dropout.default"
"""Operator of dropout; its third argument is whether the model is training."""


def masks_to_try(tokens: int, dtype: torch.dtype) -> Iterator[dict[str, torch.Tensor]]:
    """Yield arguments for a forward pass on the meta device, in the order to try them.

    Most models build a mask from values, which the meta device does not have, unless they get a
    full mask. Models that need another kind of mask are tried without one.
    """
    yield {"attention_mask": torch.zeros((1, 1, tokens, tokens), dtype=dtype, device="meta")}
    yield {}


def trace_residual(model: PreTrainedModel, stack: nn.ModuleList) -> Flow | None:
    """Trace a model on the meta device; None if the model cannot run there.

    Args:
        model: the base model, on the meta device.
        stack: its decoder blocks.
    """
    for masks in masks_to_try(TOKENS, model.dtype):
        tracer = _Tracer(model, stack)
        try:
            with (
                ListsOnHost(), fixed_rotation(model), observe_attention(tracer.record), tracer,
                torch.inference_mode(),
            ):  # fmt: skip
                ids = torch.zeros((1, TOKENS), dtype=torch.long, device="meta")
                output = hidden_states.from_output(model(input_ids=ids, use_cache=False, **masks))
        except Exception:
            continue
        if output is not None:
            tracer.flow.channels = output.shape[-1]
            return tracer.flow
    return None


def accepts_length(model: PreTrainedModel, tokens: int) -> bool:
    """Return whether a model on the meta device runs over a sequence with a number of tokens."""
    for masks in masks_to_try(tokens, model.dtype):
        try:
            with ListsOnHost(), fixed_rotation(model), torch.inference_mode():
                ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
                model(input_ids=ids, use_cache=False, **masks)
            return True
        except Exception:
            continue
    return False


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that builds the graph while the model runs.

    Args:
        model: the base model, on the meta device.
        stack: its decoder blocks.

    Attributes:
        flow: the trace.
    """

    def __init__(self, model: nn.Module, stack: nn.ModuleList) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = Flow()
        self._model, self._stack = model, stack
        self._layer = OUTSIDE
        self._nodes: dict[int, Node] = {}
        self._alive: list[torch.Tensor] = []  # keeps `id` of each tensor unique
        self._hidden: Node | None = None
        self._shape: tuple[int, ...] = ()
        self._calls: dict[str, Call | None] = {}
        self._heads = HeadTracer(TOKENS)
        self._attention: list[AttentionCall] = []
        self._handles: list[Any] = []

    def record(self, call: AttentionCall) -> None:
        """Record a call of an attention function."""
        self._attention.append(call)
        self.flow.causal.append(call.causal)

    def __enter__(self) -> _Tracer:
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
        tensors = list(tensors_in((args, kwargs)))
        inputs = [self._node(tensor) for tensor in tensors]
        result = func(*args, **(kwargs or {}))
        self._find_shared(inputs)
        self._heads.trace(func, args, kwargs or {}, tensors, list(tensors_in(result)))
        name = str(func)
        same = name in VIEWS or (name == DROPOUT and args[2] is False)
        for tensor in tensors_in(result):
            if same:
                self._remember(tensor, inputs[0])
                continue
            depends = any(node.depends_on_weights for node in inputs)
            node = Node(self._layer, depends, shape=tuple(tensor.shape), dtype=tensor.dtype)
            if name in SUMS and len(inputs) == 2 and kwargs in (None, {}):
                node.terms = (inputs[0], inputs[1])
            node.is_product = name in PRODUCTS
            self._remember(tensor, node)
        return result

    def _find_shared(self, inputs: Sequence[Node]) -> None:
        if self._layer == OUTSIDE or self.flow.shared is not None:
            return
        for node in inputs:
            if node.depends_on_weights and node.layer != self._layer and node is not self._hidden:
                if self._layer < len(self._stack):
                    self.flow.shared = self._layer
                else:
                    self.flow.end_reads_more = True

    def _node(self, tensor: torch.Tensor) -> Node:
        node = self._nodes.get(id(tensor))
        if node is None:
            # A weight belongs to the block that uses it. Any other tensor without a node is an
            # input of the model.
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
            hidden = hidden_states.from_arguments(args, kwargs)
            node = None if hidden is None else self._node(hidden)
            shape = () if hidden is None else tuple(hidden.shape)
            if not path:
                self._layer, self._hidden, self._calls = layer, node, {}
                self._heads, self._attention = HeadTracer(TOKENS), []
                self._shape = shape
            # A module that is called twice is ambiguous, so it is left out.
            call = Call(node, [], list(tensors_in((args, kwargs))), shape)
            self._calls[path] = None if path in self._calls else call

        def after(module: nn.Module, args: Any, output: Any) -> None:
            tensors = [] if hidden_states.from_output(output) is None else [*tensors_in(output)]
            nodes = [self._node(tensor) for tensor in tensors]
            call = self._calls.get(path)
            if call is not None:
                call.outputs, call.output_shape = nodes, tuple(tensors[0].shape) if tensors else ()
            if nodes and nodes[0].is_projection:
                self._heads.start(path, tensors[0])
            if not path:
                self._close(layer, nodes, len(output) if isinstance(output, list | tuple) else 0)

        return before, after

    def _close(self, layer: int, outputs: Sequence[Node], tuple_length: int) -> None:
        calls = {path: call for path, call in self._calls.items() if call is not None and path}
        heads = {role: part for role, part in self._heads.parts().items() if part.module in calls}
        if self._hidden is not None and outputs:
            self.flow.blocks[layer] = BlockFlow(
                self._hidden,
                outputs[0],
                self._shape,
                calls,
                heads,
                self._traceable_attention(layer),
                tuple_length,
            )
        self._layer = OUTSIDE
        if layer + 1 == len(self._stack) and outputs:
            self._layer, self._hidden = layer + 1, outputs[0]

    def _traceable_attention(self, layer: int) -> dict[str, int]:
        paths = {module: path for path, module in self._stack[layer].named_modules()}
        counts = Counter(call.module for call in self._attention)
        return {
            paths[call.module]: call.heads
            for call in self._attention
            if counts[call.module] == 1 and call.module in paths and call.is_supported()
        }
