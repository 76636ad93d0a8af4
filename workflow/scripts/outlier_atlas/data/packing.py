"""Cutting documents, as token ids, into sequences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Literal

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Document:
    """The token ids of a document.

    Attributes:
        ids: its own tokens. Those of a chat include what the template puts first.
        start: tokens that a sequence begins with where this document is first in it.
        end: tokens that the tokenizer puts behind a text; not used with `concat`.
        once: whether `start` is left out where the document's own tokens go on with it.
    """

    ids: Sequence[int]
    start: Ids = ()
    end: Ids = ()
    once: bool = False

    def start_before(self, position: int) -> Ids:
        """What a sequence begins with whose first own token is at a position of the document."""
        own = tuple(self.ids[position : position + len(self.start)])
        return () if self.once and own == self.start else self.start


@dataclass(frozen=True)
class Packing:
    """How sequences are made.

    Attributes:
        kind: `concat` joins the documents with `separator` and cuts full sequences; `document`
            makes one document one sequence, and drops what is beyond `length`.
        sequences: how many.
        length: tokens of each with `concat`, at most with `document`; the start included.
        min_length: with `document`, documents with fewer tokens of their own are left out.
        separator: id between two documents; None with `document`.
        before: sequences that are made and left out before them.
        special: ids of special tokens, which are counted.
    """

    kind: Literal["concat", "document"]
    sequences: int
    length: int
    min_length: int = 1
    separator: int | None = None
    before: int = 0
    special: frozenset[int] = frozenset()


@dataclass
class Used:
    """How much of the documents was read, and what is in the sequences that were made of them.

    Attributes:
        starts: what the sequences begin with, each with the number of sequences.
        special: special tokens in the sequences that are of the documents' own.
    """

    documents: int = 0
    tokens: int = 0
    starts: Counter[Ids] = field(default_factory=Counter)
    special: int = 0


@dataclass
class _Sequence:
    """A sequence that is being made."""

    ids: list[int] = field(default_factory=list)
    start: Ids = ()
    special: int = 0


def pack(documents: Iterable[Document], packing: Packing, used: Used) -> Iterator[list[int]]:
    """The sequences; reads no more documents than they need.

    Args:
        used: counts the documents read, and their tokens.

    Raises:
        ValueError: there is too little; the sentence says how much there is and what is needed.
    """
    counted = _counted(documents, used)
    make = _concat if packing.kind == "concat" else _document
    made = 0
    for sequence in islice(make(counted, packing), packing.before + packing.sequences):
        made += 1
        if made > packing.before:
            used.starts[sequence.start] += 1
            used.special += sequence.special
            yield sequence.ids
    if made < packing.before + packing.sequences:
        raise ValueError(_too_little(packing, used, made))


def _counted(documents: Iterable[Document], used: Used) -> Iterator[Document]:
    for document in documents:
        used.documents += 1
        used.tokens += len(document.ids)
        yield document


def _concat(documents: Iterable[Document], packing: Packing) -> Iterator[_Sequence]:
    assert packing.separator is not None
    sequence = _Sequence()
    first = True
    for document in documents:
        if not len(document.ids):
            continue
        between = () if first else (packing.separator,)
        first = False
        for position, token in enumerate(chain(between, document.ids), -len(between)):
            if not sequence.ids:
                begins = (
                    document.start_before(max(position, 0)) if position >= 0 else document.start
                )
                once = position < 0 and document.once and begins == (token,)
                sequence = _Sequence([] if once else list(begins), document.start)
                if len(document.start) >= packing.length:
                    raise ValueError(_only_start(packing, document.start))
            sequence.ids.append(token)
            sequence.special += position >= 0 and token in packing.special
            if len(sequence.ids) == packing.length:
                yield sequence
                sequence = _Sequence()


def _document(documents: Iterable[Document], packing: Packing) -> Iterator[_Sequence]:
    for document in documents:
        if len(document.ids) >= packing.min_length:
            start = document.start_before(0)
            ids = [*start, *document.ids, *document.end][: packing.length]
            if len(start) >= packing.length:
                raise ValueError(_only_start(packing, start))
            own = ids[len(start) : len(start) + len(document.ids)]
            yield _Sequence(ids, document.start, sum(token in packing.special for token in own))


def _only_start(packing: Packing, start: Ids) -> str:
    return (
        f"dataset.sequence_length = {packing.length}: the tokenizer begins each sequence with "
        f"{len(start)} tokens of its own, and none is left for the text"
    )


def _too_little(packing: Packing, used: Used, made: int) -> str:
    there = f"{used.tokens:,} tokens in {used.documents:,} documents"
    wanted = f"dataset.sequences = {packing.before or packing.sequences}"
    if packing.before:
        wanted = f"{wanted} and ablation.sequences = {packing.sequences},"
    if packing.kind == "concat":
        needed = (packing.before + packing.sequences) * packing.length
        return (
            f"too little text: {there}; {needed:,} tokens are needed ({wanted} x "
            f"dataset.sequence_length = {packing.length}): take fewer or shorter sequences, or "
            f"more text"
        )
    return (
        f"too little text: {made:,} documents have dataset.min_length = {packing.min_length} "
        f"tokens or more ({there}), and {wanted} are needed: "
        f"take fewer sequences, or more text"
    )
