"""Memory that a layer group needs, from a forward pass on the meta device and from headers.

The tensors of that forward pass have shapes and no content. Each of them is counted from its
allocation until it is freed.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from outlier_atlas.compat.torch_internals import TorchDispatchMode, storage_id
from outlier_atlas.loading.partial import DTYPES, build_on_meta, head_on_meta, weight_bytes
from outlier_atlas.loading.placement import spread
from outlier_atlas.roles.architecture import Architecture
from outlier_atlas.roles.pytree import tensors_in
from outlier_atlas.roles.residual_trace import masks_to_try
from outlier_atlas.sanitize import gist

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Sizes:
    """Bytes that the parts of a decoder take in memory.

    Attributes:
        layers: bytes of each layer's weights.
        active: bytes of each layer's weights that one token is multiplied with; of the experts
            those that it is routed to.
        embedding: bytes of the embedding, which the first layer group has.
        rest: bytes of the parts that each layer group has, such as the final norm and the
            frequencies of the rotary embedding.
        fused: bytes of the largest tensor of several experts, which is assembled from pieces while
            it is loaded; 0 without one.
        forward: peak of the forward pass of one sequence, without the weights. It may be measured
            in bfloat16 and scaled to the dtype. None if the model cannot run on the meta device.
        head: bytes of the head's weights that are not the embedding's.
        tied: whether the head shares the weights of the embedding.
        losses: peak of the logits of a piece and of the tensors computed from them.
    """

    layers: tuple[int, ...]
    active: tuple[int, ...]
    embedding: int
    rest: int
    fused: int
    forward: int | None
    head: int
    tied: bool
    losses: int

    def weights(self, layers: range, head: bool = False) -> int:
        """Return the bytes of the weights of a layer group, with or without the head."""
        weights = sum(self.layers[layer] for layer in layers) + (self.head if head else 0)
        embedded = 0 in layers or (head and self.tied)
        return weights + self.rest + (self.embedding if embedded else 0)

    def fullest(self, layers: range, devices: int, head: bool = False) -> int:
        """Return the bytes of a layer group's weights on the device that has the most of them."""
        layer_bytes = [self.layers[layer] for layer in layers]
        layer_bytes[0] += self.weights(layers, head) - sum(layer_bytes)
        return max(
            sum(layer_bytes[i] for i in part)
            for part in spread(layer_bytes, min(devices, len(layer_bytes)))
        )


def sizes(config: PretrainedConfig, architecture: Architecture, dtype: str, tokens: int) -> Sizes:
    """Measure the parts of a decoder in a dtype, for a sequence of a number of tokens.

    Raises:
        ValueError: the model's own code does not run in the dtype.
    """
    decoder = build_on_meta(config, architecture, range(architecture.layers), dtype)
    stack = decoder.get_submodule(architecture.stack)
    assert isinstance(stack, nn.ModuleList)
    layers = tuple(weight_bytes(block) for block in stack)
    chosen = getattr(config.get_text_config(decoder=True), "num_experts_per_tok", None)
    active = tuple(_active(block, chosen) for block in stack)
    embedding = weight_bytes(decoder.get_input_embeddings())
    rest = weight_bytes(decoder) - sum(layers) - embedding
    experts = (p for p in decoder.parameters() if p.dim() > 2)
    fused = max((p.numel() * p.element_size() for p in experts), default=0)
    forward, failed = _forward(decoder, DTYPES[dtype], tokens)
    if forward is None and dtype != "bfloat16":
        # Only in bfloat16 do fused experts have an implementation whose shapes depend on no values.
        in_bfloat16 = build_on_meta(config, architecture, range(architecture.layers), "bfloat16")
        peak, failed_in_bfloat16 = _forward(in_bfloat16, torch.bfloat16, tokens)
        forward = None if peak is None else peak * DTYPES[dtype].itemsize // 2
        failed = failed if failed_in_bfloat16 is not None else None
    if failed is not None:
        raise ValueError(
            f"model.dtype = {dtype!r}: {architecture.model_class.__name__} does not run in this "
            f"dtype, its own code fails ({gist(failed)}); choose another dtype or another model"
        )
    return Sizes(
        layers, active, embedding, rest, fused, forward,
        **_head_sizes(config, architecture, dtype, tokens),
    )  # fmt: skip


def _active(block: nn.Module, chosen: int | None) -> int:
    """Return the bytes of a layer's weights that one token is multiplied with.

    Args:
        block: the layer.
        chosen: number of experts that a token is routed to; None if the model has none, or its
            configuration has another name for it. Then all experts count.
    """

    def of(parameter: nn.Parameter) -> int:
        size = parameter.numel() * parameter.element_size()
        if parameter.dim() < 3 or not chosen:
            return size
        return size * min(chosen, parameter.shape[0]) // parameter.shape[0]

    return sum(map(of, block.parameters()))


def _head_sizes(
    config: PretrainedConfig, architecture: Architecture, dtype: str, tokens: int
) -> dict[str, Any]:
    """Return the attributes of `Sizes` for the head."""
    if architecture.head.unsupported is not None:
        return {"head": 0, "tied": False, "losses": 0}
    head, tied = head_on_meta(config, architecture, dtype), architecture.head.tied
    parameters = [
        parameter
        for path in architecture.head.modules
        for name, parameter in head.model.get_submodule(path).named_parameters(path)
        if name not in tied
    ]
    shape = (1, tokens, architecture.head.channels)
    hidden = torch.zeros(shape, dtype=DTYPES[dtype], device="meta")
    ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
    counter = _Counter()
    with counter:
        head.losses(hidden, ids)
    size = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return {"head": size, "tied": bool(tied), "losses": counter.peak}


def _forward(
    decoder: PreTrainedModel, dtype: torch.dtype, tokens: int
) -> tuple[int | None, Exception | None]:
    """Measure the peak of a forward pass.

    Returns:
        The peak in bytes, or None if the model does not run on the meta device; and the error if
        the model would fail on any device.
    """
    ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
    failed: Exception | None = None
    # A mask passed here is not built by the model, and is not counted.
    for masks in masks_to_try(tokens, dtype):
        counter = _Counter()
        try:
            with counter, torch.inference_mode():
                decoder(input_ids=ids, use_cache=False, **masks)
        except Exception as error:
            failed = error
        else:
            return counter.peak, None
    # The last attempt had no mask, as in a run. If only the meta device lacks an operation, the
    # error is of this type or names the device.
    only_on_meta = isinstance(failed, NotImplementedError) or "meta" in str(failed)
    return None, None if only_on_meta else failed


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that counts the bytes of all tensors that exist at the same time.

    Attributes:
        peak: the largest number of bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._users: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        inputs = {storage_id(tensor) for tensor in tensors_in((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            storage, size = storage_id(tensor), tensor.untyped_storage().nbytes()
            if storage in inputs and storage not in self._users:
                continue  # a view of a weight or an input
            if storage not in self._users:
                self._users[storage] = 0
                self._now += size
                self.peak = max(self.peak, self._now)
            self._users[storage] += 1
            weakref.finalize(tensor, self._release, storage, size)
        return result

    def _release(self, storage: int, size: int) -> None:
        self._users[storage] -= 1
        if not self._users[storage]:
            del self._users[storage]
            self._now -= size
