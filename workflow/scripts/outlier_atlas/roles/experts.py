"""Output of each expert for the tokens that are routed to it, observed inside fused experts.

The experts of a layer are one module with a 3-D parameter for each projection. No submodule has the
output of one expert. So each torch function that the module calls is observed, to identify the
products with the down projection: one for all experts, or one for each. The indices that rows were
gathered with identify the token of each row, and the weights of the product identify the expert.
Nothing is computed twice, and nothing in the computation changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from outlier_atlas.compat.torch_internals import storage_id
from outlier_atlas.roles.pytree import tensors_in
from outlier_atlas.roles.residual_flow import Call

DOWN_PROJECTIONS = {"down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "w2", "wo"}
"""Names of down projections."""
PRODUCTS = {"linear", "matmul", "__matmul__", "mm", "_grouped_mm", "grouped_mm_fallback"}
"""Names of functions that multiply matrices."""
SUMS = {"add", "add_", "__add__", "__iadd__"}
"""Names of functions that add tensors."""
METADATA_FUNCTIONS = {"__get__", "size", "dim"}
"""Functions that read the shape, dtype or device of a tensor, but none of its values."""


def down_projection(module: nn.Module) -> nn.Parameter | None:
    """Return the down projection of fused experts, (expert, ..., ...); None for other modules."""
    matches = [
        parameter
        for name, parameter in module.named_parameters(recurse=False)
        if name in DOWN_PROJECTIONS and parameter.dim() == 3
    ]
    return matches[0] if len(matches) == 1 else None


def biases(module: nn.Module) -> list[nn.Parameter]:
    """Return the biases of fused experts, (expert, channel)."""
    down = down_projection(module)
    assert down is not None
    return [p for p in module.parameters(recurse=False) if p.dim() == 2 and len(p) == len(down)]


def routed_experts(module: nn.Module, call: Call) -> int | None:
    """Return the number of experts that a token is routed to.

    Args:
        module: fused experts on the meta device.
        call: traced call of the module.

    Returns:
        None if the computation of the experts cannot be traced.
    """
    try:
        with torch.inference_mode(), ExpertRecorder(module, call.tensors) as recorder:
            module.forward(*call.tensors)
    except Exception:
        return None
    return int(recorder.routing.shape[1]) if recorder.is_complete() else None


class RecordedExperts:
    """Replacement for the forward of fused experts, which calls and records it.

    Args:
        experts: module of fused experts; its `forward` is replaced.
        name: name of the module, for errors.
    """

    def __init__(self, experts: nn.Module, name: str) -> None:
        self._experts, self._forward, self._name = experts, experts.forward, name
        self._largest: torch.Tensor | None = None
        experts.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward of the experts.

        Raises:
            ValueError: the computation cannot be traced.
        """
        try:
            recorder = ExpertRecorder(self._experts, list(tensors_in((args, kwargs))))
            with recorder:
                output = self._forward(*args, **kwargs)
            self._largest = recorder.largest()
        except UntraceableExpertsError as error:
            raise ValueError(
                f"{self._name}: {error}, so its experts cannot be measured; remove expert_out from "
                f"extraction.sites"
            ) from error
        return output

    def take(self) -> torch.Tensor:
        """Return the result of `ExpertRecorder.largest` for the last forward, and forget it."""
        largest, self._largest = self._largest, None
        assert largest is not None
        return largest


class UntraceableExpertsError(Exception):
    """Error for a computation of fused experts that is not supported."""


class ExpertRecorder(TorchFunctionMode):
    """Recorder of the largest |down_proj output| and |down_proj input| of each token and expert.

    It is active during one forward of a module of fused experts. The output is taken with its bias,
    before the router's weight and before any later norm.

    Args:
        experts: the module.
        inputs: the tensors that it is called with. The first one has the hidden states (token,
            channel). One integer tensor among the others has the experts of each token (token,
            routed).

    Raises:
        UntraceableExpertsError: the inputs differ from this, or the computation cannot be traced.
    """

    def __init__(self, experts: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()
        down = down_projection(experts)
        assert down is not None
        self._down = down
        self._biases_of_experts = biases(experts)
        routing = [tensor for tensor in inputs if not tensor.is_floating_point()]
        if len(routing) != 1 or [inputs[0].dim(), routing[0].dim()] != [2, 2]:
            raise UntraceableExpertsError("its inputs do not include the experts of each token")
        self._hidden, self.routing = inputs[0], routing[0]
        self._biases: Any = WeakIdKeyDictionary()
        self._tokens: torch.Tensor | None = None
        self._product: torch.Tensor | None = None
        self._inputs: tuple[torch.Tensor, torch.Tensor] | None = None
        self._experts: torch.Tensor | None = None
        self._biased = False
        self._rows: list[tuple[torch.Tensor, ...]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        inputs = list(tensors_in((args, kwargs)))
        uses = name not in METADATA_FUNCTIONS and any(tensor is self._product for tensor in inputs)
        adds_bias = uses and name in SUMS and any(tensor in self._biases for tensor in inputs)
        if uses and not adds_bias:
            self._reduce()  # at once: the product may be overwritten
        result = func(*args, **kwargs)
        if adds_bias:
            self._product, self._biased = result, True
        elif name == "__getitem__":
            self._record_gather(args[0], args[1], result)
        elif name in PRODUCTS:
            self._record_product(inputs, kwargs.get("offs"), result)
        return result

    def is_complete(self) -> bool:
        """Return whether every token was recorded once for each of its experts."""
        if self._product is not None:
            self._reduce()
        return sum(len(tokens) for tokens, *_ in self._rows) == self.routing.numel()

    def largest(self) -> torch.Tensor:
        """Return five numbers for each token and each of its experts, in the router's order.

        Returns:
            (token, 5 x routed), float32: the signed values of the largest |down_proj output|, the
            experts, the channels of these values, the signed values of the largest
            |down_proj input|, and their channels. float32 holds integers up to 2^24 exactly.

        Raises:
            UntraceableExpertsError: not every token was recorded once for each of its experts.
        """
        if not self.is_complete():
            raise UntraceableExpertsError("not every routed token was recorded")
        tokens, experts, *numbers = map(torch.cat, zip(*self._rows, strict=True))
        values, channels, inputs, input_channels = (each.float() for each in numbers)
        is_expert = self.routing[tokens] == experts[:, None]
        count, routed = self.routing.shape
        numbers_by_token = torch.full((count, 5, routed), -1.0, device=values.device)
        numbers_by_token[tokens, :, is_expert.int().argmax(1)] = torch.stack(
            [values, experts.float(), channels, inputs, input_channels], 1
        )
        if not bool((numbers_by_token[:, 1] == self.routing).all()):
            raise UntraceableExpertsError("a token was recorded for an expert it is not routed to")
        return numbers_by_token.reshape(count, 5 * routed)

    def _record_gather(self, source: torch.Tensor, index: Any, rows: torch.Tensor) -> None:
        if source is self._hidden and isinstance(index, torch.Tensor) and index.dim() == 1:
            self._tokens = index
        elif any(source is bias for bias in self._biases_of_experts):
            self._biases[rows] = True

    def _record_product(
        self, tensors: Sequence[torch.Tensor], offsets: torch.Tensor | None, result: torch.Tensor
    ) -> None:
        weights = [tensor for tensor in tensors if self._is_down_projection(tensor)]
        if not weights:
            return
        if self._tokens is None or result.dim() != 2 or len(result) != len(self._tokens):
            raise UntraceableExpertsError("the tokens of a product are unknown")
        inputs = [
            tensor
            for tensor in tensors
            if tensor.is_floating_point()
            and tensor.dim() == 2
            and len(tensor) == len(result)
            and not self._is_down_projection(tensor)
        ]
        if len(inputs) != 1:
            raise UntraceableExpertsError("the inputs of a product are unknown")
        self._inputs = _largest(inputs[0])
        self._product, self._experts, self._biased = (
            result,
            self._experts_of_rows(weights[0], offsets),
            False,
        )

    def _is_down_projection(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is the down projection or a view of it."""
        down = self._down
        first = down.storage_offset()
        return (
            storage_id(tensor) == storage_id(down)
            and first <= tensor.storage_offset() < first + down.numel()
        )

    def _experts_of_rows(self, weight: torch.Tensor, offsets: torch.Tensor | None) -> torch.Tensor:
        """Return the expert of each row of a product with a view of the down projection."""
        down, tokens = self._down, self._tokens
        assert tokens is not None
        if weight.dim() == 2 and weight.numel() == down[0].numel():
            first = weight.storage_offset() - down.storage_offset()
            return torch.full_like(tokens, first // down.stride(0))
        if weight.dim() == 3 and weight.numel() == down.numel() and offsets is not None:
            rows = torch.arange(len(tokens), dtype=offsets.dtype, device=offsets.device)
            return torch.searchsorted(offsets, rows, right=True)
        raise UntraceableExpertsError("the experts of a product are unknown")

    def _reduce(self) -> None:
        """Record the largest value in each row of the current product."""
        product, self._product = self._product, None
        assert product is not None and self._tokens is not None and self._experts is not None
        if self._biases_of_experts and not self._biased:
            raise UntraceableExpertsError("a product is used without its bias")
        assert self._inputs is not None
        self._rows.append((self._tokens, self._experts, *_largest(product), *self._inputs))


def _largest(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the value with the largest |x| in each row, with its sign, and its channel."""
    channels = rows.abs().max(-1).indices
    return rows.gather(-1, channels[:, None])[:, 0], channels
