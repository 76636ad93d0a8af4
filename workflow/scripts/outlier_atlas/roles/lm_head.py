"""Head: from the residual stream to a loss, as the model's own forward pass computes it.

Heads differ: biases, a factor on the logits, a soft cap, weights tied to the embeddings. None of
this is implemented again here. The model's own forward runs, with a module in place of its decoder
that returns the decoder's earlier output. So everything after the decoder is computed by the
model's own code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from outlier_atlas.roles.partial_decoder import PassThrough

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS_BYTES = 64 * 2**20
"""Bytes of float32 logits that exist at a time.

The value affects results: on some machines the last bits of a matrix product depend on its rows.
"""

TOKENS = 8
"""Number of tokens in the traced forward pass."""


@dataclass(frozen=True)
class HeadParts:
    """Modules and weights of the head of a model.

    Attributes:
        modules: paths of the modules with weights that the head calls.
        tied: names of the head's weights that are shared, each with the name of the other weight.
        vocabulary: number of logits per token.
        channels: channels of the head's input; a decoder may output fewer than its residual stream.
        unsupported: reason why the head cannot be used; None if it can.
    """

    modules: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    vocabulary: int = 0
    channels: int = 0
    unsupported: str | None = None


class FixedDecoder(PassThrough):
    """Replacement for the decoder, which returns an earlier output of it.

    Attributes:
        hidden: the output to return, (batch, token, channel).
    """

    hidden: torch.Tensor

    def forward(self, *args: Any, **kwargs: Any) -> _DecoderOutput:
        return _DecoderOutput(self.hidden)


class _DecoderOutput:
    """Output of a decoder with the last hidden states only."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, key: int | str) -> torch.Tensor:
        if key in (0, "last_hidden_state"):
            return self.last_hidden_state
        raise IndexError(key)

    def __getattr__(self, name: str) -> None:
        """Return None for caches, attention maps and router scores."""
        if name.startswith("__"):
            raise AttributeError(name)


class Head:
    """Computation of a model after its decoder.

    Args:
        model: model with the weights of its head; its decoder is replaced.
        decoder: path of the decoder.
        vocabulary: number of logits per token.

    Attributes:
        model: the model without its decoder.
    """

    def __init__(self, model: PreTrainedModel, decoder: str, vocabulary: int) -> None:
        self._fixed_decoder = FixedDecoder(model.get_submodule(decoder))
        model.set_submodule(decoder, self._fixed_decoder)
        self.model = model
        self._block = block_tokens(vocabulary)

    def logits(self, hidden_BTC: torch.Tensor) -> torch.Tensor:
        """Return the logits (batch, token, vocabulary) for an output of the decoder.

        Args:
            hidden_BTC: output of the decoder, (batch, token, channel).

        Returns:
            The logits in the dtype of the model's forward.
        """
        self._fixed_decoder.hidden = hidden_BTC
        logits = self.model(inputs_embeds=hidden_BTC, use_cache=False).logits
        assert isinstance(logits, torch.Tensor)
        return logits

    @torch.inference_mode()
    def losses(self, hidden_BTC: torch.Tensor, ids_BT: torch.Tensor) -> torch.Tensor:
        """Return the negative log-likelihood of each token given the earlier tokens.

        The logits are computed in pieces of one sequence and at most `LOGITS_BYTES`, for any batch
        size.

        Args:
            hidden_BTC: output of the decoder.
            ids_BT: token ids.

        Returns:
            (batch, token, 1), float32, in nats; NaN for the first token of a sequence, which has no
            earlier tokens.
        """
        losses = hidden_BTC.new_full((*ids_BT.shape, 1), float("nan"), dtype=torch.float32)
        targets_BT = ids_BT.to(hidden_BTC.device)
        for sequence, targets_T in enumerate(targets_BT):
            self._sequence_losses(hidden_BTC[sequence : sequence + 1], targets_T, losses[sequence])
        return losses

    def _sequence_losses(
        self, hidden_1TC: torch.Tensor, targets_T: torch.Tensor, losses_T1: torch.Tensor
    ) -> None:
        predicted = len(targets_T) - 1
        for start in range(0, predicted, self._block):
            stop = min(start + self._block, predicted)
            logits_TV = self.logits(hidden_1TC[:, start:stop])[0].float()
            next_ids = targets_T[start + 1 : stop + 1].to(logits_TV.device)
            loss_T1 = -logits_TV.log_softmax(-1).gather(1, next_ids[:, None])
            losses_T1[start + 1 : stop + 1] = loss_T1.to(losses_T1.device)


def block_tokens(vocabulary: int) -> int:
    """Return the number of tokens per piece of logits: a power of two, for fast matrix products."""
    most = max(1, LOGITS_BYTES // (4 * vocabulary))
    return 1 << (most.bit_length() - 1)


def find_head(model: PreTrainedModel, decoder: str, channels: int) -> HeadParts:
    """Identify the head of a model by a forward pass on the meta device.

    Args:
        model: model on the meta device; its decoder is replaced.
        decoder: path of the decoder.
        channels: channels of the decoder's output.
    """
    tied = dict(model.all_tied_weights_keys)
    head = Head(model, decoder, vocabulary=1)
    called: list[str] = []
    for path, module in model.named_children():
        if path != decoder.split(".", maxsplit=1)[0] and any(True for _ in module.parameters()):
            module.register_forward_hook(lambda *_, path=path: called.append(path))
    try:
        hidden = torch.zeros((1, TOKENS, channels), dtype=model.dtype, device="meta")
        shape = head.logits(hidden).shape
    except Exception as error:
        return HeadParts(
            unsupported=f"its head does not run without the decoder ({type(error).__name__})"
        )
    if len(shape) != 3 or shape[:2] != (1, TOKENS):
        return HeadParts(unsupported=f"its head returns shape {tuple(shape)} for {TOKENS} tokens")
    head_ties = {name: source for name, source in tied.items() if name.split(".")[0] in called}
    return HeadParts(tuple(dict.fromkeys(called)), head_ties, int(shape[-1]), channels)
