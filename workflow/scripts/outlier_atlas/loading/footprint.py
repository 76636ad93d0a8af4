"""How much memory a layer group takes, found without any: on the meta device, and from headers.

The forward pass is run with tensors that have a shape and no content, and every one of them is
counted from when it is made until it is let go.
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
    """Bytes of a decoder's parts, in memory.

    Attributes:
        layers: of each layer's weights.
        embedding: of the embedding, which the first layer group has.
        rest: of what every layer group has, such as the final norm and the rotation's frequencies.
        fused: of the largest tensor of several experts, which is put together from pieces while it
            is loaded; 0 without any.
        forward: the most that the forward pass of one sequence holds at a time without the weights,
            or as much in bfloat16, scaled to the dtype; None where the model cannot run on the meta
            device.
        head: of the head's weights that are not the embedding's.
        tied: whether the embedding is the head's, too.
        losses: the most that the logits of a piece, and what is made of them, hold at a time.
    """

    layers: tuple[int, ...]
    embedding: int
    rest: int
    fused: int
    forward: int | None
    head: int
    tied: bool
    losses: int

    def weights(self, layers: range, head: bool = False) -> int:
        """Bytes of the weights of a layer group, with or without the head."""
        own = sum(self.layers[layer] for layer in layers) + (self.head if head else 0)
        embedded = 0 in layers or (head and self.tied)
        return own + self.rest + (self.embedding if embedded else 0)

    def fullest(self, layers: range, devices: int, head: bool = False) -> int:
        """Bytes of the weights of a layer group on the fullest of its devices."""
        own = [self.layers[layer] for layer in layers]
        own[0] += self.weights(layers, head) - sum(own)
        return max(sum(own[i] for i in part) for part in spread(own, min(devices, len(own))))


def sizes(config: PretrainedConfig, architecture: Architecture, dtype: str, tokens: int) -> Sizes:
    """The sizes of a decoder in a dtype, for a sequence of so many tokens.

    Raises:
        ValueError: the model's own code does not run in the dtype.
    """
    decoder = build_on_meta(config, architecture, range(architecture.layers), dtype)
    stack = decoder.get_submodule(architecture.stack)
    assert isinstance(stack, nn.ModuleList)
    layers = tuple(weight_bytes(block) for block in stack)
    embedding = weight_bytes(decoder.get_input_embeddings())
    rest = weight_bytes(decoder) - sum(layers) - embedding
    experts = (p for p in decoder.parameters() if p.dim() > 2)
    fused = max((p.numel() * p.element_size() for p in experts), default=0)
    forward, failed = _forward(decoder, DTYPES[dtype], tokens)
    if forward is None and dtype != "bfloat16":
        # Fused experts have a form without content-dependent shapes in bfloat16 alone.
        alike = build_on_meta(config, architecture, range(architecture.layers), "bfloat16")
        known, failed_alike = _forward(alike, torch.bfloat16, tokens)
        forward = None if known is None else known * DTYPES[dtype].itemsize // 2
        failed = failed if failed_alike is not None else None
    if failed is not None:
        raise ValueError(
            f"model.dtype = {dtype!r}: {architecture.model_class.__name__} does not run in it, its "
            f"own code fails ({gist(failed)}); take another dtype or another model"
        )
    return Sizes(
        layers, embedding, rest, fused, forward,
        **_of_head(config, architecture, dtype, tokens),
    )  # fmt: skip


def _of_head(
    config: PretrainedConfig, architecture: Architecture, dtype: str, tokens: int
) -> dict[str, Any]:
    if architecture.head.unclear is not None:
        return {"head": 0, "tied": False, "losses": 0}
    head, tied = head_on_meta(config, architecture, dtype), architecture.head.tied
    own = [
        parameter
        for path in architecture.head.modules
        for name, parameter in head.model.get_submodule(path).named_parameters(path)
        if name not in tied
    ]
    made = (1, tokens, architecture.head.channels)
    hidden = torch.zeros(made, dtype=DTYPES[dtype], device="meta")
    ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
    counter = _Counter()
    with counter:
        head.losses(hidden, ids)
    size = sum(parameter.numel() * parameter.element_size() for parameter in own)
    return {"head": size, "tied": bool(tied), "losses": counter.most}


def _forward(
    decoder: PreTrainedModel, dtype: torch.dtype, tokens: int
) -> tuple[int | None, Exception | None]:
    """The bytes that a forward pass holds; else, why it fails on any device, if it does."""
    ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
    failed: Exception | None = None
    # A mask that is given here is not made in a run, and not counted.
    for masks in masks_to_try(tokens, dtype):
        counter = _Counter()
        try:
            with counter, torch.inference_mode():
                decoder(input_ids=ids, use_cache=False, **masks)
        except Exception as error:
            failed = error
        else:
            return counter.most, None
    # The last one was called as a run calls it; what only the meta device lacks, it says.
    only_here = isinstance(failed, NotImplementedError) or "meta" in str(failed)
    return None, None if only_here else failed


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are alive at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._now = 0
        self._users: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {storage_id(tensor) for tensor in tensors_in((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            storage, size = storage_id(tensor), tensor.untyped_storage().nbytes()
            if storage in given and storage not in self._users:
                continue  # a view of a weight or an input
            if storage not in self._users:
                self._users[storage] = 0
                self._now += size
                self.most = max(self.most, self._now)
            self._users[storage] += 1
            weakref.finalize(tensor, self._let_go, storage, size)
        return result

    def _let_go(self, storage: int, size: int) -> None:
        self._users[storage] -= 1
        if not self._users[storage]:
            del self._users[storage]
            self._now -= size
