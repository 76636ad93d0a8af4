"""What each expert makes of the tokens that are routed to it, seen inside the fused computation.

The experts of a layer are one module with a 3-D parameter for each projection: no module in it has
the output of one expert. So while it runs, every torch function that it calls is looked at, and the
products with the down projection are found among them: one for all experts, or one for each. Which
token a row of a product belongs to is told by what was gathered from the hidden states, and which
expert by what it was multiplied with. Nothing is computed twice, and nothing of it is changed.
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
PRODUCTS = {"linear", "matmul", "__matmul__", "mm", "_grouped_mm", "grouped_mm_fallback"}
SUMS = {"add", "add_", "__add__", "__iadd__"}
QUESTIONS = {"__get__", "size", "dim"}
"""What asks a tensor for its shape, dtype or device, and uses none of its values."""


def down_projection(module: nn.Module) -> nn.Parameter | None:
    """The down projection of fused experts, (expert, ..., ...); None where the module is none."""
    found = [
        parameter
        for name, parameter in module.named_parameters(recurse=False)
        if name in DOWN_PROJECTIONS and parameter.dim() == 3
    ]
    return found[0] if len(found) == 1 else None


def biases(module: nn.Module) -> list[nn.Parameter]:
    """The biases of fused experts, (expert, channel)."""
    down = down_projection(module)
    assert down is not None
    return [p for p in module.parameters(recurse=False) if p.dim() == 2 and len(p) == len(down)]


def routed_experts(module: nn.Module, call: Call) -> int | None:
    """To how many experts a token is routed; None where their computation cannot be followed.

    Args:
        module: fused experts on the meta device.
        call: of the module, as it was seen.
    """
    try:
        with torch.inference_mode(), ExpertRecorder(module, call.tensors) as recorder:
            module.forward(*call.tensors)
    except Exception:
        return None
    return int(recorder.routing.shape[1]) if recorder.followed() else None


class RecordedExperts:
    """Takes the place of the forward of fused experts, which it calls and records.

    Args:
        experts: a module of fused experts.
        name: of the module, for errors.
    """

    def __init__(self, experts: nn.Module, name: str) -> None:
        self._experts, self._forward, self._name = experts, experts.forward, name
        self._largest: torch.Tensor | None = None
        experts.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward of the experts.

        Raises:
            ValueError: it could not be followed.
        """
        try:
            recorder = ExpertRecorder(self._experts, list(tensors_in((args, kwargs))))
            with recorder:
                made = self._forward(*args, **kwargs)
            self._largest = recorder.largest()
        except NotFollowedError as error:
            raise ValueError(
                f"{self._name}: {error}, so what its experts compute cannot be measured; take "
                f"expert_out out of extraction.sites"
            ) from error
        return made

    def take(self) -> torch.Tensor:
        """What `ExpertRecorder.largest` gave for the last forward; once."""
        largest, self._largest = self._largest, None
        assert largest is not None
        return largest


class NotFollowedError(Exception):
    """The computation of fused experts is none that is known here."""


class ExpertRecorder(TorchFunctionMode):
    """Records the largest |down_proj output| of each token in each expert that it is routed to, and
    the largest |input| of the same product.

    Active around one forward of a module of fused experts. The output is taken with its bias,
    before the router's weight, and before any norm behind it.

    Args:
        experts: the module.
        given: the tensors that it is called with: hidden states (token, channel) first, and among
            the others one of whole numbers: the experts of each token (token, routed).

    Raises:
        NotFollowedError: it is called with something else, or what it computes cannot be told.
    """

    def __init__(self, experts: nn.Module, given: Sequence[torch.Tensor]) -> None:
        super().__init__()
        down = down_projection(experts)
        assert down is not None
        self._down = down
        self._biases_of_experts = biases(experts)
        routing = [tensor for tensor in given if not tensor.is_floating_point()]
        if len(routing) != 1 or [given[0].dim(), routing[0].dim()] != [2, 2]:
            raise NotFollowedError("they are not given each token's experts")
        self._hidden, self.routing = given[0], routing[0]
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
        taken = list(tensors_in((args, kwargs)))
        uses = name not in QUESTIONS and any(tensor is self._product for tensor in taken)
        adds_bias = uses and name in SUMS and any(tensor in self._biases for tensor in taken)
        if uses and not adds_bias:
            self._reduce()  # now: it may be overwritten
        result = func(*args, **kwargs)
        if adds_bias:
            self._product, self._biased = result, True
        elif name == "__getitem__":
            self._see_gathered(args[0], args[1], result)
        elif name in PRODUCTS:
            self._see_product(taken, kwargs.get("offs"), result)
        return result

    def followed(self) -> bool:
        """Whether as many rows were seen as tokens are routed, and nothing is left of them."""
        if self._product is not None:
            self._reduce()
        return sum(len(tokens) for tokens, *_ in self._rows) == self.routing.numel()

    def largest(self) -> torch.Tensor:
        """Five numbers for each token and each expert that it is routed to, in the router's order.

        Returns:
            (token, 5 x routed), float32: the signed values of the largest |down_proj output|, the
            experts, the channels in which the values lie, the signed values of the largest
            |down_proj input|, and their channels. float32 holds whole numbers up to 2^24 exactly.

        Raises:
            NotFollowedError: not each token was seen once in each expert that it is routed to.
        """
        if not self.followed():
            raise NotFollowedError("not every token that is routed was seen")
        tokens, experts, *numbers = map(torch.cat, zip(*self._rows, strict=True))
        values, channels, inputs, input_channels = (each.float() for each in numbers)
        mine = self.routing[tokens] == experts[:, None]
        count, routed = self.routing.shape
        made = torch.full((count, 5, routed), -1.0, device=values.device)
        made[tokens, :, mine.int().argmax(1)] = torch.stack(
            [values, experts.float(), channels, inputs, input_channels], 1
        )
        if not bool((made[:, 1] == self.routing).all()):
            raise NotFollowedError("a token was seen in an expert that it is not routed to")
        return made.reshape(count, 5 * routed)

    def _see_gathered(self, source: torch.Tensor, index: Any, rows: torch.Tensor) -> None:
        if source is self._hidden and isinstance(index, torch.Tensor) and index.dim() == 1:
            self._tokens = index
        elif any(source is bias for bias in self._biases_of_experts):
            self._biases[rows] = True

    def _see_product(
        self, taken: Sequence[torch.Tensor], offsets: torch.Tensor | None, result: torch.Tensor
    ) -> None:
        weights = [tensor for tensor in taken if self._is_of_down(tensor)]
        if not weights:
            return
        if self._tokens is None or result.dim() != 2 or len(result) != len(self._tokens):
            raise NotFollowedError("the tokens of a product are not known")
        inputs = [
            tensor
            for tensor in taken
            if tensor.is_floating_point()
            and tensor.dim() == 2
            and len(tensor) == len(result)
            and not self._is_of_down(tensor)
        ]
        if len(inputs) != 1:
            raise NotFollowedError("the inputs of a product are not known")
        self._inputs = _largest(inputs[0])
        self._product, self._experts, self._biased = result, self._of(weights[0], offsets), False

    def _is_of_down(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is the down projection, or a view of it."""
        down = self._down
        first = down.storage_offset()
        return (
            storage_id(tensor) == storage_id(down)
            and first <= tensor.storage_offset() < first + down.numel()
        )

    def _of(self, weight: torch.Tensor, offsets: torch.Tensor | None) -> torch.Tensor:
        """The expert of each row of the product with a view of the down projection."""
        down, tokens = self._down, self._tokens
        assert tokens is not None
        if weight.dim() == 2 and weight.numel() == down[0].numel():
            first = weight.storage_offset() - down.storage_offset()
            return torch.full_like(tokens, first // down.stride(0))
        if weight.dim() == 3 and weight.numel() == down.numel() and offsets is not None:
            rows = torch.arange(len(tokens), dtype=offsets.dtype, device=offsets.device)
            return torch.searchsorted(offsets, rows, right=True)
        raise NotFollowedError("the experts of a product are not known")

    def _reduce(self) -> None:
        """Keep of the product the largest value of each row."""
        product, self._product = self._product, None
        assert product is not None and self._tokens is not None and self._experts is not None
        if self._biases_of_experts and not self._biased:
            raise NotFollowedError("a product is used without its bias")
        assert self._inputs is not None
        self._rows.append((self._tokens, self._experts, *_largest(product), *self._inputs))


def _largest(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The value largest in |x| of each row, with its sign, and its channel."""
    channels = rows.abs().max(-1).indices
    return rows.gather(-1, channels[:, None])[:, 0], channels
