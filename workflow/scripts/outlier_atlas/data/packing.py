"""Packing of documents, as token ids, into sequences."""

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
        ids: the document's own tokens. Those of a chat include the first tokens of its template.
        start: tokens that a sequence begins with if this document is the first in it.
        end: tokens that the tokenizer adds after a text; not used with `concat`.
        once: whether `start` is left out if the document's own tokens begin with it.
    """

    ids: Sequence[int]
    start: Ids = ()
    end: Ids = ()
    once: bool = False

    def start_before(self, position: int) -> Ids:
        """Return the start of a sequence whose first own token is at a position of the document."""
        own = tuple(self.ids[position : position + len(self.start)])
        return () if self.once and own == self.start else self.start


@dataclass(frozen=True)
class Packing:
    """The parameters of packing.

    Attributes:
        kind: `concat` joins the documents with `separator` and cuts full sequences; `document`
            turns each document into one sequence, and drops the tokens beyond `length`.
        sequences: number of sequences.
        length: tokens of a sequence, including its start; the maximum with `document`.
        min_length: least number of own tokens of a document with `document`; documents with fewer
            are skipped.
        separator: token id between two documents; None with `document`.
        before: number of sequences that are made first and skipped.
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
class PackingCounts:
    """Counts of the documents that were read and of the sequences that were made of them.

    Attributes:
        documents: number of documents.
        tokens: number of the documents' own tokens.
        starts: number of sequences for each start.
        special: number of special tokens in the sequences that are the documents' own.
    """

    documents: int = 0
    tokens: int = 0
    starts: Counter[Ids] = field(default_factory=Counter)
    special: int = 0


@dataclass
class _Sequence:
    """A sequence under construction."""

    ids: list[int] = field(default_factory=list)
    start: Ids = ()
    special: int = 0


def pack(
    documents: Iterable[Document], packing: Packing, counts: PackingCounts
) -> Iterator[list[int]]:
    """Yield the sequences; read no more documents than needed.

    Args:
        documents: the documents in order.
        packing: the parameters.
        counts: counts the documents read and their tokens.

    Raises:
        ValueError: There is too little text. The message says how much there is and how much is
            needed.
    """
    counted = _counted(documents, counts)
    make = _concat if packing.kind == "concat" else _document
    number = 0
    for sequence in islice(make(counted, packing), packing.before + packing.sequences):
        number += 1
        if number > packing.before:
            counts.starts[sequence.start] += 1
            counts.special += sequence.special
            yield sequence.ids
    if number < packing.before + packing.sequences:
        raise ValueError(_too_little(packing, counts, number))


def _counted(documents: Iterable[Document], counts: PackingCounts) -> Iterator[Document]:
    for document in documents:
        counts.documents += 1
        counts.tokens += len(document.ids)
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
        f"{len(start)} tokens of its own, and none is left for the text; take longer sequences"
    )


def _too_little(packing: Packing, counts: PackingCounts, documents: int) -> str:
    available = f"{counts.tokens:,} tokens in {counts.documents:,} documents"
    required = f"dataset.sequences = {packing.before or packing.sequences}"
    if packing.before:
        required = f"{required} and ablation.sequences = {packing.sequences},"
    if packing.kind == "concat":
        needed = (packing.before + packing.sequences) * packing.length
        return (
            f"too little text: {available}; {needed:,} tokens are needed ({required} x "
            f"dataset.sequence_length = {packing.length}): take fewer or shorter sequences, or "
            f"more text"
        )
    return (
        f"too little text: {documents:,} documents have dataset.min_length = {packing.min_length} "
        f"tokens or more ({available}), and {required} are needed: "
        f"take fewer sequences, or more text"
    )
