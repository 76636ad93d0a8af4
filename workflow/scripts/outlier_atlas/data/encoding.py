"""What a tokenizer makes of a document, and the text it gives back for tokens."""

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
"""Characters before which a text is cut: the last five are those of Chinese and Japanese."""
PROBES = "aA0.\u4e00"
"""Texts, one of which every tokenizer has a token for."""
MARGIN = 64
"""Tokens, and characters, more than are needed: a cut may change as many before it."""
PREFIX_CHARACTERS = 16
"""Characters of a text, for each token that is needed, that are tokenized at first."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

Kind = Literal["text", "messages", "input_ids"]


@dataclass(frozen=True)
class Encoder:
    """Turns a document into token ids.

    Attributes:
        kind: what a document is: text, messages, or ready ids.
        tokenizer: None where ready ids need none.
        vocabulary: number of ids that the model has.
        bos: the policy `dataset.bos`.
        bos_id: the BOS token's id; None: there is none.
        split: whether special tokens that stand in a text are cut into pieces.
        around: what the tokenizer puts before and behind a text by itself.
        template: renders messages.
        most: tokens of a document that can be used; of a long text no more than its start is
            tokenized, and what is given back are at least so many.
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
        """Token ids of a document, and what a sequence begins with.

        Raises:
            ValueError: an id is not in the vocabulary, or the template refuses the messages.
        """
        made = self._document(document)
        every = (*made.start, *made.ids, *made.end)
        for index, token in enumerate(every, 1 - len(made.start)):
            if not 0 <= token < self.vocabulary:
                shown = shortened(str(token), 40)
                raise ValueError(
                    f"token id {shown} is not in the model's vocabulary of {self.vocabulary} "
                    f"(token {index} of the row)"
                )
        return made

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
            # What the template gave is read from the ids: a template may name BOS and not put it.
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

        # A tokenizer takes a hundred times a text's length in memory. Tokens far before a cut are
        # those of the whole text, and twice as many as are needed come before it.
        characters = PREFIX_CHARACTERS * (self.most or len(text)) + MARGIN
        while characters < len(text):
            # A word is whole or left out: WordPiece makes one token of a word that is too long, and
            # pieces of its start.
            cut = max(text.rfind(end, characters // 2, characters) for end in ENDS_OF_WORDS)
            start = ids(text[:cut]) if cut > 0 else []
            if self.most is not None and len(start) >= 2 * self.most + MARGIN:
                return start[: self.most + 1]
            characters *= 4
        return ids(text)


def _ids(
    tokenizer: PreTrainedTokenizerBase, text: str, split: bool = False, whole: bool = False
) -> list[int]:
    """Token ids of a text.

    Args:
        split: cut special tokens that stand in it into pieces; else the tokenizer decides.
        whole: with what the tokenizer puts around a text.
    """
    how = {"split_special_tokens": True} if split else {}
    encoded = tokenizer(text, add_special_tokens=whole, verbose=False, **how)
    return list(encoded["input_ids"])


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, Ids]:
    """What a tokenizer puts before and behind a text by itself.

    Raises:
        ValueError: its tokens for a text are not in one piece among those with what is added.
    """
    for probe in PROBES:
        own, whole = _ids(tokenizer, probe), _ids(tokenizer, probe, whole=True)
        for start in range(len(whole) - len(own) + 1):
            if own and whole[start : start + len(own)] == own:
                return tuple(whole[:start]), tuple(whole[start + len(own) :])
    raise ValueError("the tokenizer changes a text's own tokens where it adds special ones")


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of all special tokens: those with a role, and those that were added as special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    own = {int(token) for token, held in added.items() if getattr(held, "special", False)}
    return own | {int(token) for token in tokenizer.all_special_ids}


def encoder(
    settings: DatasetSettings,
    tokenizer: PreTrainedTokenizerBase | None,
    vocabulary: int,
    before: int = 0,
    fallback: int | None = None,
) -> Encoder:
    """The encoder for a dataset.

    Args:
        before: sequences that are made of the same documents before the dataset's own.
        fallback: the model configuration's own BOS id, for ready ids without a tokenizer.

    Raises:
        ValueError: there is no tokenizer, or no chat template, and one is needed; or BOS is always
            wanted and there is none, or is none of the model's ids.
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
    """Refuse a token of the tokenizer's that the model has no embedding of.

    Raises:
        ValueError: it has none.
    """
    if token is not None and not 0 <= token < vocabulary:
        raise ValueError(
            f"the tokenizer's {name} has id {token}, and the model has {vocabulary} embeddings, "
            f"numbered from 0; {advice}"
        )


def token_text(tokenizer: PreTrainedTokenizerBase | None) -> Callable[[int], str]:
    """A function that gives a token's own text: with its space, special tokens by name, and the
    bytes of a piece of a character as `<0xE2>`."""
    if tokenizer is None:
        return lambda token: ""
    special = special_ids(tokenizer)
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
