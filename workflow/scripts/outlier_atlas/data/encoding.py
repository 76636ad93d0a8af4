"""What a tokenizer makes of a document, and the text it gives back for tokens."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from outlier_atlas.settings.dataset import DatasetSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFIX_CHARACTERS = 16
"""Characters of a text, for each token that is needed, that are tokenized at first."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

Kind = Literal["text", "messages", "input_ids"]


@dataclass(frozen=True)
class Encoder:
    """Turns a document into token ids, without BOS.

    Attributes:
        kind: what a document is: text, messages, or ready ids.
        tokenizer: None where ready ids need none.
        vocabulary: number of ids that the model has.
        template_bos: whether the chat template puts BOS before the first message.
        most: tokens of a document that can be used; of a long text no more than its start is
            tokenized, and what is given back are at least so many.
    """

    kind: Kind
    tokenizer: PreTrainedTokenizerBase | None
    vocabulary: int
    template_bos: bool = False
    most: int | None = None

    def __call__(self, document: Any) -> list[int]:
        """Token ids of a document.

        Strings that look like special tokens are plain text where they stand in a text: a document
        cannot put control tokens into a sequence.

        Raises:
            ValueError: an id is not in the vocabulary, or the template refuses the messages.
        """
        ids = self._ids(document)
        beyond = next((i for i in ids if not 0 <= i < self.vocabulary), None)
        if beyond is not None:
            raise ValueError(
                f"token id {beyond} is not in the model's vocabulary of {self.vocabulary}"
            )
        return ids

    def _ids(self, document: Any) -> list[int]:
        if self.kind == "input_ids":
            return [int(token) for token in document]
        tokenizer = self.tokenizer
        assert tokenizer is not None
        if self.kind == "text":
            return self._of_text(tokenizer, document)
        try:
            ids = tokenizer.apply_chat_template(document, tokenize=True, return_dict=False)
        except Exception as error:  # templates raise what they like
            raise ValueError(f"the chat template refuses the messages ({error})") from error
        ids = list(ids)
        return ids[1:] if self.template_bos and ids[:1] == [tokenizer.bos_token_id] else ids

    def _of_text(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        def ids(part: str) -> list[int]:
            encoded = tokenizer(
                part, add_special_tokens=False, split_special_tokens=True, verbose=False
            )
            return list(encoded["input_ids"])

        # A tokenizer takes a hundred times a text's length in memory. Tokens far before a cut are
        # those of the whole text, and twice as many as are needed come before it.
        characters = PREFIX_CHARACTERS * (self.most or len(text))
        while characters < len(text):
            start = ids(text[:characters])
            if self.most is not None and len(start) >= 2 * self.most:
                return start
            characters *= 4
        return ids(text)


def encoder(
    settings: DatasetSettings,
    tokenizer: PreTrainedTokenizerBase | None,
    vocabulary: int,
    before: int = 0,
) -> Encoder:
    """The encoder for a dataset.

    Args:
        before: sequences that are made of the same documents before the dataset's own.

    Raises:
        ValueError: there is no tokenizer, or no chat template, and one is needed.
    """
    kind, column = settings.column
    if kind != "input_ids" and tokenizer is None:
        raise ValueError(
            f"the model comes without a tokenizer, and column {column!r} holds {kind}: give ready "
            f"token ids (dataset.input_ids_column)"
        )
    template = getattr(tokenizer, "chat_template", None)
    if kind == "messages" and not template:
        raise ValueError(
            "the model's tokenizer has no chat template, and dataset.messages_column needs one"
        )
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    template_bos = kind == "messages" and "bos_token" in str(template)
    most = settings.sequence_length
    if settings.packing == "concat":
        most *= before + settings.sequences
    return Encoder(kind, tokenizer, vocabulary, template_bos, most)


def bos(settings: DatasetSettings, encoder: Encoder, fallback: int | None) -> int | None:
    """The id that begins each sequence, by the policy `dataset.bos`; None: none is put there.

    Args:
        fallback: the model configuration's own BOS id, for ready ids without a tokenizer.

    Raises:
        ValueError: BOS is always wanted and there is none.
    """
    tokenizer = encoder.tokenizer
    token = fallback if tokenizer is None else tokenizer.bos_token_id
    if settings.bos == "always" and token is None:
        raise ValueError("dataset.bos = 'always': the tokenizer has no BOS token; take auto")
    if settings.bos == "never" or token is None:
        return None
    return int(token) if settings.bos == "always" or _by_itself(encoder, int(token)) else None


def _by_itself(encoder: Encoder, token: int) -> bool:
    """Whether the tokenizer begins with BOS of its own accord."""
    if encoder.kind == "input_ids" or encoder.tokenizer is None:
        return False
    return encoder.template_bos or list(encoder.tokenizer("a")["input_ids"])[:1] == [token]


def token_text(tokenizer: PreTrainedTokenizerBase | None) -> Callable[[int], str]:
    """A function that gives a token's own text: with its space, special tokens by name, and the
    bytes of a piece of a character as `<0xE2>`."""
    if tokenizer is None:
        return lambda token: ""
    special = set(tokenizer.all_special_ids)
    # Decoders drop the space before the first token: so each is decoded behind another one.
    anchor = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    before = tokenizer.decode(anchor)

    def text(token: int) -> str:
        raw = tokenizer.convert_ids_to_tokens(token)
        if raw is None:
            return f"<{token}>"
        if token in special or re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", raw):
            return str(raw)
        decoded = tokenizer.decode([*anchor, token])
        own = decoded.removeprefix(before) if decoded.startswith(before) else decoded
        return _bytes(str(raw)) if REPLACEMENT in own else own

    return text


def pieces(tokenizer: PreTrainedTokenizerBase | None) -> Callable[[Sequence[int]], list[str]]:
    """A function that gives each token's part of a sequence's text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if tokenizer is None:
        return lambda sequence: [""] * len(sequence)
    if backend is None:
        own = token_text(tokenizer)
        return lambda sequence: [own(token) for token in sequence]

    def parts(sequence: Sequence[int]) -> list[str]:
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(backend, token) or "" for token in sequence]

    return parts


def _bytes(raw: str) -> str:
    """A byte-level token as the bytes it stands for."""
    table = _byte_alphabet()
    if all(character in table for character in raw):
        return "".join(f"<0x{table[character]:02X}>" for character in raw)
    return raw


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes: printable ones as themselves, the
    others in order from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}
