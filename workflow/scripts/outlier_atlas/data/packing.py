"""Cutting documents, as lists of token ids, into sequences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal


@dataclass(frozen=True)
class Packing:
    """How sequences are made.

    Attributes:
        kind: `concat` joins the documents with `separator` and cuts full sequences; `document`
            makes one document one sequence, and drops what is beyond `length`.
        sequences: how many.
        length: tokens of each with `concat`, at most with `document`; BOS included.
        min_length: with `document`, documents with fewer tokens of their own are left out.
        bos: id put at the start of every sequence that does not begin with it; None: nothing is.
        separator: id between two documents; None with `document`.
        before: sequences that are made and left out before them.
    """

    kind: Literal["concat", "document"]
    sequences: int
    length: int
    min_length: int = 1
    bos: int | None = None
    separator: int | None = None
    before: int = 0


@dataclass
class Used:
    """How much of the documents was read."""

    documents: int = 0
    tokens: int = 0


def pack(documents: Iterable[Sequence[int]], packing: Packing, used: Used) -> Iterator[list[int]]:
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
            yield sequence
    if made < packing.before + packing.sequences:
        raise ValueError(_too_little(packing, used, made))


def _counted(documents: Iterable[Sequence[int]], used: Used) -> Iterator[Sequence[int]]:
    for document in documents:
        used.documents += 1
        used.tokens += len(document)
        yield document


def _concat(documents: Iterable[Sequence[int]], packing: Packing) -> Iterator[list[int]]:
    sequence: list[int] = []
    for token in _joined(documents, packing.separator):
        if not sequence and packing.bos is not None and token != packing.bos:
            sequence.append(packing.bos)
        sequence.append(token)
        if len(sequence) == packing.length:
            yield sequence
            sequence = []


def _joined(documents: Iterable[Sequence[int]], separator: int | None) -> Iterator[int]:
    assert separator is not None
    filled = (document for document in documents if len(document))
    first = next(filled, ())
    return chain(first, (token for document in filled for token in (separator, *document)))


def _document(documents: Iterable[Sequence[int]], packing: Packing) -> Iterator[list[int]]:
    for document in documents:
        if len(document) >= packing.min_length:
            added = packing.bos is not None and document[0] != packing.bos
            start = [packing.bos] if packing.bos is not None and added else []
            yield [*start, *document[: packing.length - len(start)]]


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
