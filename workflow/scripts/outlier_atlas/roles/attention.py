"""How much attention each of the first tokens receives, without attention maps.

Models hand queries, keys and mask to an attention function that transformers picks for them
(`AttentionInterface`). It is looked at there, as it is called: from the first queries and keys the
weights among the first tokens are computed in addition, one sequence at a time. The function is
called as it would have been, so nothing of the model's result is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

TENSORS = ("module", "query", "key", "value", "attention_mask")
"""The arguments that every attention function takes, in order."""

FOLLOWED = {"scaling", "is_causal", "softcap", "s_aux"}
"""The others that the scores depend on."""

ASIDE = {
    "dropout", "sliding_window", "position_ids", "position_embeddings", "output_attentions",
    "use_cache", "cache_position", "return_dict",
    "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
}  # fmt: skip
"""Those that they do not depend on, or that the mask holds as well."""


@dataclass(frozen=True)
class AttentionCall:
    """A call of an attention function.

    Attributes:
        module: that attends.
        query: (batch, head, token, channel), rotated.
        key: (batch, key head, token, channel), likewise; several heads may share one.
        mask: (batch or 1, head or 1, token, token): what is added to the scores, or where there is
            attention; None where causality alone says it.
        others: the remaining arguments, by name.
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

    def followed(self) -> bool:
        """Whether it is causal attention of all tokens to each other, with arguments known here."""
        unknown = {k for k, value in self.others.items() if value is not None} - FOLLOWED - ASIDE
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
        """The attention that each of the first tokens receives.

        It is alpha_k of Gu et al. 2024 (arXiv 2410.10781), the mean of A[i, k] over the queries
        k <= i < T, where A is the attention among the first T tokens.

        Args:
            tokens: T; of a shorter sequence its length.

        Returns:
            (batch, token, head), float32; NaN from token T on, where it is not defined.
        """
        batch, heads, length, _ = self.query.shape
        first = min(tokens, length)
        device = self.query.device
        queries = torch.arange(first, 0, -1, device=device)
        made = torch.full((batch, length, heads), torch.nan, device=device)
        for sequence in range(batch):
            weights_HQK = self._weights(sequence, first)
            made[sequence, :first] = (weights_HQK.sum(1) / queries).mT
        return made

    def _weights(self, sequence: int, first: int) -> torch.Tensor:
        """Attention among the first tokens of a sequence, (head, query, key), float32."""
        query_HTC = self.query[sequence, :, :first].float()
        shared = self.heads // self.key.shape[1]
        key_HTC = self.key[sequence, :, :first].float().repeat_interleave(shared, dim=0)
        scaling, softcap = self.others.get("scaling"), self.others.get("softcap")
        scores_HQK = query_HTC @ key_HTC.mT
        scores_HQK *= self.query.shape[-1] ** -0.5 if scaling is None else scaling
        if softcap is not None:
            scores_HQK = torch.tanh(scores_HQK / softcap) * softcap
        scores_HQK = self._masked(scores_HQK, sequence)
        if (sink := self.others.get("s_aux")) is not None:
            # A score that every query has for nothing: it takes a share of the softmax.
            column = sink.float().reshape(-1, 1, 1).expand(-1, first, 1)
            scores_HQK = torch.cat([scores_HQK, column], dim=-1)
        return scores_HQK.softmax(-1)[..., :first]

    def _masked(self, scores_HQK: torch.Tensor, sequence: int) -> torch.Tensor:
        first = scores_HQK.shape[-1]
        if self.mask is None:
            later = torch.ones(first, first, dtype=torch.bool, device=scores_HQK.device).triu(1)
            return scores_HQK.masked_fill(later, -torch.inf)
        of_all = len(self.mask) == 1
        mask: torch.Tensor = self.mask[0 if of_all else sequence, :, :first, :first]
        if mask.dtype == torch.bool:
            return scores_HQK.masked_fill(~mask, -torch.inf)
        return scores_HQK + mask.float()

    @property
    def causal(self) -> bool:
        """Whether a token attends to none behind it."""
        said = self.others.get("is_causal")
        return bool(getattr(self.module, "is_causal", True) if said is None else said)


@contextmanager
def attention_seen(see: Callable[[AttentionCall], None]) -> Iterator[None]:
    """Hand `see` each call of an attention function in the block, before it is made."""
    from transformers import AttentionInterface

    before = AttentionInterface.get_interface

    def get_interface(self: Any, implementation: str, default: Any) -> Any:
        return _Seen(before(self, implementation, default), see)

    AttentionInterface.get_interface = get_interface
    try:
        yield
    finally:
        AttentionInterface.get_interface = before


@dataclass(frozen=True)
class _Seen:
    """An attention function each of whose calls is handed to `see`."""

    function: Callable[..., Any]
    see: Callable[[AttentionCall], None]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(TENSORS, args, strict=False)) | kwargs
        module, query, key, _, mask = (given.pop(name, None) for name in TENSORS)
        assert isinstance(query, torch.Tensor) and isinstance(key, torch.Tensor)
        self.see(AttentionCall(module, query, key, mask, given))
        return self.function(*args, **kwargs)


class RecordedAttention:
    """Takes the place of an attention module's forward, which it calls and records.

    Args:
        attention: the module.
        name: of the module, for errors.
        tokens: of how many first tokens it is recorded what attention they receive.
    """

    def __init__(self, attention: nn.Module, name: str, tokens: int) -> None:
        self._forward, self._name, self._tokens = attention.forward, name, tokens
        self._received: torch.Tensor | None = None
        attention.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward of the module.

        Raises:
            ValueError: its attention is not seen, or none that is known here.
        """
        self._received = None
        with attention_seen(self._see):
            made = self._forward(*args, **kwargs)
        if self._received is None:
            raise self._lost()
        return made

    def take(self) -> torch.Tensor:
        """What `AttentionCall.received` gave for the last forward; once."""
        received, self._received = self._received, None
        assert received is not None
        return received

    def _see(self, call: AttentionCall) -> None:
        if self._received is not None or not call.followed():
            raise self._lost()
        self._received = call.received(self._tokens)

    def _lost(self) -> ValueError:
        return ValueError(
            f"{self._name}: its attention cannot be followed, so what its tokens receive cannot be "
            f"measured; take attn_sink out of extraction.sites"
        )
