"""Attention that each of the first tokens receives, without attention maps.

Models pass queries, keys and mask to an attention function that transformers chooses for them
(`AttentionInterface`). Each call of that function is observed. From the first queries and keys of
the call, the weights among the first tokens are computed in addition, one sequence at a time. The
function itself runs unchanged, so the model's result stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

TENSORS = ("module", "query", "key", "value", "attention_mask")
"""Arguments of every attention function, in order."""

SCORE_ARGUMENTS = {"scaling", "is_causal", "softcap", "s_aux"}
"""Further arguments that the scores depend on; `AttentionCall` applies them."""

OTHER_ARGUMENTS = {
    "dropout", "sliding_window", "position_ids", "position_embeddings", "output_attentions",
    "use_cache", "cache_position", "return_dict",
    "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
}  # fmt: skip
"""Further arguments that the scores do not depend on, or that the mask already includes."""


@dataclass(frozen=True)
class AttentionCall:
    """Call of an attention function.

    Attributes:
        module: attention module.
        query: rotated queries, (batch, head, token, channel).
        key: rotated keys, (batch, key head, token, channel); several heads may share one.
        mask: (batch or 1, head or 1, token, token). Either it is added to the scores, or it is True
            for allowed keys. None if attention is only masked causally.
        others: remaining arguments, by name.
    """

    module: nn.Module
    query: torch.Tensor
    key: torch.Tensor
    mask: Any
    others: Mapping[str, Any]

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return int(self.query.shape[1])

    def is_supported(self) -> bool:
        """Return whether `received` supports the call.

        That is causal attention among all tokens, with known arguments.
        """
        unknown = (
            {k for k, value in self.others.items() if value is not None}
            - SCORE_ARGUMENTS
            - OTHER_ARGUMENTS
        )
        shapes = [(t.dim(), t.shape[2]) for t in (self.query, self.key)]
        return (
            not unknown
            and shapes[0] == shapes[1] == (4, self.query.shape[2])
            and self.heads % self.key.shape[1] == 0
            and (
                self.mask is None or (isinstance(self.mask, torch.Tensor) and self.mask.dim() == 4)
            )
            and self.causal
        )

    def received(self, tokens: int) -> torch.Tensor:
        """Return the attention that each of the first tokens receives.

        It is alpha_k of Gu et al. 2024 (arXiv 2410.10781): the mean of A[i, k] over the queries
        k <= i < T, where A is the attention among the first T tokens.

        Args:
            tokens: T; a shorter sequence uses its own length.

        Returns:
            (batch, token, head), float32; NaN from token T on, where alpha_k is not defined.
        """
        batch, heads, length, _ = self.query.shape
        counted = min(tokens, length)
        device = self.query.device
        queries = torch.arange(counted, 0, -1, device=device)
        received = torch.full((batch, length, heads), torch.nan, device=device)
        for sequence in range(batch):
            weights_HQK = self._weights(sequence, counted)
            received[sequence, :counted] = (weights_HQK.sum(1) / queries).mT
        return received

    def _weights(self, sequence: int, first: int) -> torch.Tensor:
        """Return the attention among a sequence's first tokens, (head, query, key), float32."""
        query_HTC = self.query[sequence, :, :first].float()
        heads_per_key = self.heads // self.key.shape[1]
        key_HTC = self.key[sequence, :, :first].float().repeat_interleave(heads_per_key, dim=0)
        scaling, softcap = self.others.get("scaling"), self.others.get("softcap")
        scores_HQK = query_HTC @ key_HTC.mT
        scores_HQK *= self.query.shape[-1] ** -0.5 if scaling is None else scaling
        if softcap is not None:
            scores_HQK = torch.tanh(scores_HQK / softcap) * softcap
        scores_HQK = self._masked(scores_HQK, sequence)
        if (sink := self.others.get("s_aux")) is not None:
            # A sink is a score without a key, which takes a share of the softmax.
            column = sink.float().reshape(-1, 1, 1).expand(-1, first, 1)
            scores_HQK = torch.cat([scores_HQK, column], dim=-1)
        return scores_HQK.softmax(-1)[..., :first]

    def _masked(self, scores_HQK: torch.Tensor, sequence: int) -> torch.Tensor:
        """Return the scores with -inf for keys that a query does not attend to."""
        first = scores_HQK.shape[-1]
        if self.mask is None:
            later = torch.ones(first, first, dtype=torch.bool, device=scores_HQK.device).triu(1)
            return scores_HQK.masked_fill(later, -torch.inf)
        shared_by_batch = len(self.mask) == 1
        mask: torch.Tensor = self.mask[0 if shared_by_batch else sequence, :, :first, :first]
        if mask.dtype == torch.bool:
            return scores_HQK.masked_fill(~mask, -torch.inf)
        return scores_HQK + mask.float()

    @property
    def causal(self) -> bool:
        """Whether no token attends to later tokens."""
        stated = self.others.get("is_causal")
        return bool(getattr(self.module, "is_causal", True) if stated is None else stated)


@contextmanager
def observe_attention(observe: Callable[[AttentionCall], None]) -> Iterator[None]:
    """Pass each call of an attention function in the block to `observe`, before it runs."""
    from transformers import AttentionInterface

    original = AttentionInterface.get_interface

    def get_interface(self: Any, implementation: str, default: Any) -> Any:
        return _ObservedFunction(original(self, implementation, default), observe)

    AttentionInterface.get_interface = get_interface
    try:
        yield
    finally:
        AttentionInterface.get_interface = original


@dataclass(frozen=True)
class _ObservedFunction:
    """Attention function that passes each of its calls to `observe`."""

    function: Callable[..., Any]
    observe: Callable[[AttentionCall], None]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = dict(zip(TENSORS, args, strict=False)) | kwargs
        module, query, key, _, mask = (arguments.pop(name, None) for name in TENSORS)
        assert isinstance(query, torch.Tensor) and isinstance(key, torch.Tensor)
        self.observe(AttentionCall(module, query, key, mask, arguments))
        return self.function(*args, **kwargs)


class RecordedAttention:
    """Replacement for the forward of an attention module, which calls and records it.

    Args:
        attention: the attention module; its `forward` is replaced.
        name: name of the module, for errors.
        tokens: number of first tokens whose received attention is recorded.
    """

    def __init__(self, attention: nn.Module, name: str, tokens: int) -> None:
        self._forward, self._name, self._tokens = attention.forward, name, tokens
        self._received: torch.Tensor | None = None
        attention.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward of the module.

        Raises:
            ValueError: the module calls no attention function, or one that is not supported.
        """
        self._received = None
        with observe_attention(self._record):
            output = self._forward(*args, **kwargs)
        if self._received is None:
            raise self._unsupported()
        return output

    def take(self) -> torch.Tensor:
        """Return the result of `AttentionCall.received` for the last forward, and forget it."""
        received, self._received = self._received, None
        assert received is not None
        return received

    def _record(self, call: AttentionCall) -> None:
        if self._received is not None or not call.is_supported():
            raise self._unsupported()
        self._received = call.received(self._tokens)

    def _unsupported(self) -> ValueError:
        return ValueError(
            f"{self._name}: its attention cannot be traced, so the attention that tokens receive "
            f"cannot be measured; remove attn_sink from extraction.sites"
        )
