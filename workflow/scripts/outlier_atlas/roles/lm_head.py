"""From the residual stream to a loss: the head, as the model's own forward pass applies it.

Heads differ: biases, a factor on the logits, a soft cap, weights tied to the embeddings. None of it
is written again here. The model's own forward runs, with a module in place of its decoder that
hands out what the decoder had made; so what it does behind the decoder is done as it does it.
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
"""Bytes of the logits in float32 that are there at a time. A part of the numerics: on some machines
the last bits of a matrix product depend on its rows."""

TOKENS = 8
"""Tokens of the watched forward pass."""


@dataclass(frozen=True)
class HeadParts:
    """Where the head of a model lies.

    Attributes:
        modules: those that it calls and that have weights, by path.
        tied: names of their weights that are others' as well, each with the other's name.
        vocabulary: number of logits of a token.
        channels: of what it is given, which a decoder may have made narrower than its residual
            stream.
        unclear: why it cannot be used; None where it can.
    """

    modules: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    vocabulary: int = 0
    channels: int = 0
    unclear: str | None = None


class Handed(PassThrough):
    """Stands where the decoder was, and hands out what it had made.

    Attributes:
        hidden: that, (batch, token, channel).
    """

    hidden: torch.Tensor

    def forward(self, *args: Any, **kwargs: Any) -> _Made:
        return _Made(self.hidden)


class _Made:
    """What a decoder returns: of all that a forward pass may ask for, the last hidden states."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, key: int | str) -> torch.Tensor:
        if key in (0, "last_hidden_state"):
            return self.last_hidden_state
        raise IndexError(key)

    def __getattr__(self, name: str) -> None:
        """No caches, no attention maps, no router scores."""
        if name.startswith("__"):
            raise AttributeError(name)


class Head:
    """What a model does behind its decoder.

    Args:
        model: with the weights of its head; its decoder is taken out of it.
        decoder: path of the decoder.
        vocabulary: number of logits of a token.

    Attributes:
        model: what is left of it.
    """

    def __init__(self, model: PreTrainedModel, decoder: str, vocabulary: int) -> None:
        self._handed = Handed(model.get_submodule(decoder))
        model.set_submodule(decoder, self._handed)
        self.model = model
        self._block = block_tokens(vocabulary)

    def logits(self, hidden_BTC: torch.Tensor) -> torch.Tensor:
        """The logits (batch, token, vocabulary) of what the decoder made, (batch, token, channel).

        In the dtype in which the model gives them.
        """
        self._handed.hidden = hidden_BTC
        logits = self.model(inputs_embeds=hidden_BTC, use_cache=False).logits
        assert isinstance(logits, torch.Tensor)
        return logits

    @torch.inference_mode()
    def losses(self, hidden_BTC: torch.Tensor, ids_BT: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood of each token, given all before it in its sequence.

        The logits are made in pieces, of one sequence and `LOGITS_BYTES` each, whatever the batch.

        Args:
            hidden_BTC: what the decoder made.
            ids_BT: token ids.

        Returns:
            (batch, token, 1), float32, in nats; NaN for the first token of a sequence, which
            nothing predicts.
        """
        losses = hidden_BTC.new_full((*ids_BT.shape, 1), float("nan"), dtype=torch.float32)
        targets_BT = ids_BT.to(hidden_BTC.device)
        for sequence, targets_T in enumerate(targets_BT):
            self._of_sequence(hidden_BTC[sequence : sequence + 1], targets_T, losses[sequence])
        return losses

    def _of_sequence(
        self, hidden_1TC: torch.Tensor, targets_T: torch.Tensor, losses_T1: torch.Tensor
    ) -> None:
        predicted = len(targets_T) - 1
        for start in range(0, predicted, self._block):
            stop = min(start + self._block, predicted)
            logits_TV = self.logits(hidden_1TC[:, start:stop])[0].float()
            wanted = targets_T[start + 1 : stop + 1].to(logits_TV.device)
            loss_T1 = -logits_TV.log_softmax(-1).gather(1, wanted[:, None])
            losses_T1[start + 1 : stop + 1] = loss_T1.to(losses_T1.device)


def block_tokens(vocabulary: int) -> int:
    """Tokens whose logits are there at a time: a power of two, which suits matrix products."""
    most = max(1, LOGITS_BYTES // (4 * vocabulary))
    return 1 << (most.bit_length() - 1)


def find_head(model: PreTrainedModel, decoder: str, channels: int) -> HeadParts:
    """Where the head of a model lies, found by a forward pass without memory.

    Args:
        model: on the meta device; its decoder is taken out of it.
        decoder: path of the decoder.
        channels: of what the decoder makes.
    """
    tied = dict(model.all_tied_weights_keys)
    head = Head(model, decoder, vocabulary=1)
    called: list[str] = []
    for path, module in model.named_children():
        if path != decoder.split(".", maxsplit=1)[0] and any(True for _ in module.parameters()):
            module.register_forward_hook(lambda *_, path=path: called.append(path))
    try:
        given = torch.zeros((1, TOKENS, channels), dtype=model.dtype, device="meta")
        shape = head.logits(given).shape
    except Exception as error:
        return HeadParts(unclear=f"its head does not run on its own ({type(error).__name__})")
    if len(shape) != 3 or shape[:2] != (1, TOKENS):
        return HeadParts(unclear=f"its head makes {tuple(shape)} of {TOKENS} tokens")
    own = {name: source for name, source in tied.items() if name.split(".")[0] in called}
    return HeadParts(tuple(dict.fromkeys(called)), own, int(shape[-1]), channels)
