"""Encoding of documents as token ids, and decoding of tokens as text."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from outlier_atlas.data.chats import Template
from outlier_atlas.data.packing import Document, Ids
from outlier_atlas.sanitize import shortened
from outlier_atlas.settings.dataset import DatasetSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENDS_OF_WORDS = " \n\t.,;:!?\u3002\uff0c\u3001\uff01\uff1f"
"""Characters before which a text may be cut; the last five are Chinese and Japanese."""
PROBES = "aA0.\u4e00"
"""Texts for one of which every tokenizer has a token."""
MARGIN = 64
"""Tokens and characters in excess of those needed: a cut may change as many before it."""
PREFIX_CHARACTERS = 16
"""Characters of a text that are tokenized at first for each token that is needed."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

Kind = Literal["text", "messages", "input_ids"]


@dataclass(frozen=True)
class Encoder:
    """An encoder of documents as token ids.

    Attributes:
        kind: kind of the documents: text, messages, or token ids.
        tokenizer: the tokenizer; None if documents are token ids and the model has none.
        vocabulary: number of token ids of the model.
        bos: the policy `dataset.bos`.
        bos_id: id of the BOS token; None if there is none.
        split: whether special tokens written in a text are tokenized like other text.
        around: tokens that the tokenizer adds before and after a text by default.
        template: template that renders messages.
        most: number of tokens of a document that can be used. Only the start of a longer text is
            tokenized, and at least this many tokens are returned for it.
    """

    kind: Kind
    tokenizer: PreTrainedTokenizerBase | None
    vocabulary: int
    bos: Literal["auto", "always", "never"] = "auto"
    bos_id: int | None = None
    split: bool = False
    around: tuple[Ids, Ids] = ((), ())
    template: Template | None = None
    most: int | None = None

    def __call__(self, document: Any) -> Document:
        """Return the token ids of a document, and the tokens that a sequence begins with.

        Raises:
            ValueError: A token id is not in the vocabulary, or the template refuses the messages.
        """
        encoded = self._document(document)
        tokens = (*encoded.start, *encoded.ids, *encoded.end)
        for index, token in enumerate(tokens, 1 - len(encoded.start)):
            if not 0 <= token < self.vocabulary:
                shown = shortened(str(token), 40)
                raise ValueError(
                    f"token id {shown} is not in the model's vocabulary of {self.vocabulary} "
                    f"(token {index} of the row)"
                )
        return encoded

    def _document(self, document: Any) -> Document:
        always = (self.bos_id,) if self.bos == "always" and self.bos_id is not None else ()
        if self.kind == "input_ids":
            return Document([int(token) for token in document], always, once=True)
        if self.kind == "messages":
            assert self.template is not None
            ids = self.template(document)
            begins = self.bos_id is not None and ids[:1] == [self.bos_id]
            if begins and self.bos == "never":
                return Document(ids[1:])
            # The ids decide: a template may name the BOS token without rendering it.
            return Document(ids, (ids[0],) if begins else always, once=True)
        assert self.tokenizer is not None
        start, end = self.around
        if self.bos == "never":
            start = ()
        elif always and self.bos_id not in start:
            start = (*always, *start)
        return Document(self._of_text(self.tokenizer, document), start, end)

    def _of_text(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        def ids(part: str) -> list[int]:
            return _ids(tokenizer, part, self.split)

        # A tokenizer needs a hundred times a text's length in memory. Tokens far before a cut equal
        # those of the whole text, and twice as many tokens as needed precede the cut.
        characters = PREFIX_CHARACTERS * (self.most or len(text)) + MARGIN
        while characters < len(text):
            # The cut is at the end of a word: WordPiece makes one token of a word that is too long,
            # but several tokens of its beginning.
            cut = max(text.rfind(end, characters // 2, characters) for end in ENDS_OF_WORDS)
            start = ids(text[:cut]) if cut > 0 else []
            if self.most is not None and len(start) >= 2 * self.most + MARGIN:
                return start[: self.most + 1]
            characters *= 4
        return ids(text)


def _ids(
    tokenizer: PreTrainedTokenizerBase, text: str, split: bool = False, whole: bool = False
) -> list[int]:
    """Return the token ids of a text.

    Args:
        split: whether special tokens written in the text are tokenized like other text; by default
            the tokenizer decides.
        whole: whether to include the tokens that the tokenizer adds around a text.
    """
    how = {"split_special_tokens": True} if split else {}
    encoded = tokenizer(text, add_special_tokens=whole, verbose=False, **how)
    return list(encoded["input_ids"])


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, Ids]:
    """Return the tokens that a tokenizer adds before and after a text by default.

    Raises:
        ValueError: The tokens of a text are not contiguous among those with the added tokens.
    """
    for probe in PROBES:
        own, whole = _ids(tokenizer, probe), _ids(tokenizer, probe, whole=True)
        for start in range(len(whole) - len(own) + 1):
            if own and whole[start : start + len(own)] == own:
                return tuple(whole[:start]), tuple(whole[start + len(own) :])
    raise ValueError(
        "the tokenizer changes the tokens of a text when it adds special tokens, which is not "
        "supported; give token ids (dataset.input_ids_column)"
    )


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of all special tokens: those with a role, and those added as special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    own = {int(token) for token, entry in added.items() if getattr(entry, "special", False)}
    return own | {int(token) for token in tokenizer.all_special_ids}


def encoder(
    settings: DatasetSettings,
    tokenizer: PreTrainedTokenizerBase | None,
    vocabulary: int,
    before: int = 0,
    fallback: int | None = None,
) -> Encoder:
    """Return the encoder for a dataset.

    Args:
        settings: the `dataset` section of the configuration.
        tokenizer: the model's tokenizer; None if it has none.
        vocabulary: number of token ids of the model.
        before: number of sequences that are made of the same documents before those of the dataset.
        fallback: BOS id of the model's configuration, for token ids without a tokenizer.
    """
    kind, column = settings.column
    if kind != "input_ids" and tokenizer is None:
        raise ValueError(
            f"the model comes without a tokenizer, and column {column!r} holds {kind}; give token "
            f"ids (dataset.input_ids_column)"
        )
    template = getattr(tokenizer, "chat_template", None)
    if kind == "messages" and not template:
        raise ValueError(
            "the model's tokenizer has no chat template, and dataset.messages_column needs one"
        )
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    bos_id = fallback if tokenizer is None else tokenizer.bos_token_id
    if settings.bos == "always" and bos_id is None:
        raise ValueError("dataset.bos = 'always': the tokenizer has no BOS token; take auto")
    if settings.bos == "always":
        check_id("BOS token", bos_id, vocabulary, "dataset.bos: never leaves it out")
    around: tuple[Ids, Ids] = _around(tokenizer) if kind == "text" and tokenizer else ((), ())
    for token in around[0] if settings.bos != "never" else ():
        check_id("first token", token, vocabulary, "dataset.bos: never leaves it out")
    most = settings.sequence_length
    if settings.packing == "concat":
        most *= before + settings.sequences
    return Encoder(
        kind, tokenizer, vocabulary, settings.bos, bos_id, settings.special_tokens == "split",
        around, Template(tokenizer, settings.date) if kind == "messages" and tokenizer else None,
        most,
    )  # fmt: skip


def check_id(name: str, token: int | None, vocabulary: int, advice: str) -> None:
    """Refuse a token of the tokenizer for which the model has no embedding.

    Args:
        name: name of the token in the message.
        token: id of the token; None if there is none.
        vocabulary: number of embeddings.
        advice: remedy in the message.

    Raises:
        ValueError: The model has no embedding for the token.
    """
    if token is not None and not 0 <= token < vocabulary:
        raise ValueError(
            f"the tokenizer's {name} has id {token}, and the model has {vocabulary} embeddings, "
            f"numbered from 0; {advice}"
        )


def token_text(tokenizer: PreTrainedTokenizerBase | None) -> Callable[[int], str]:
    """Return a function that maps a token id to the token's own text.

    The text includes the token's space. A special token has its name, and a part of a character has
    its bytes in the form `<0xE2>`.
    """
    if tokenizer is None:
        return lambda token: ""
    special = special_ids(tokenizer)
    # Decoders drop the space before the first token, so each token is decoded after another one.
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
    """Return a function that maps the ids of a sequence to each token's part of the text."""
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
    """Return a byte-level token as the bytes that it stands for."""
    table = _byte_alphabet()
    if all(character in table for character in raw):
        return "".join(f"<0x{table[character]:02X}>" for character in raw)
    return raw


def _byte_alphabet() -> dict[str, int]:
    """Return the bytes by the characters with which byte-level BPE writes them.

    Printable bytes stand for themselves, and the others follow in order from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}
