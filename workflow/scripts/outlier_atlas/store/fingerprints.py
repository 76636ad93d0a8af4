"""Fingerprints: digests of everything that the numbers of a chunk depend on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.files import fingerprint
from outlier_atlas.store.commits import Commits, Counted, Rows
from outlier_atlas.store.layout import SUMMARY_VERSION, Layout

NUMERICS_VERSION = 1
"""Version of the numbers of extraction.

Raise the version if a change of the code changes these numbers. All rows are then stale.
"""


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of the chunks of a run in its current configuration.

    Attributes:
        layout: the layout of the store.
        token_ids: token ids, (tokens,).
        sequence_starts: index of the first token of each sequence, and the number of tokens,
            (sequences + 1,).
        model: fingerprint of the weights.
    """

    layout: Layout
    token_ids: NDArray[np.int32]
    sequence_starts: NDArray[np.int64]
    model: str

    def of(self, chunk: int) -> str:
        """Return the fingerprint of a chunk."""
        if chunk not in self._known:
            self._known[chunk] = fingerprint(self.sequences(*self.layout.chunk_range(chunk)))
        return self._known[chunk]

    def summary(self, rows: Rows, depends: Any = None) -> str:
        """Return the fingerprint of a summary of rows.

        Args:
            rows: the rows.
            depends: other dependencies of the summary, such as the excluded tokens.
        """
        return fingerprint(
            {
                "sequences": self.sequences(rows.start, rows.stop),
                "rows": [rows.start, rows.stop],
                "depends": depends,
                "summary": SUMMARY_VERSION,
            }
        )

    def counted(self, commits: Commits) -> Counted:
        """Return a function that returns the rows committed under the current configuration."""
        return lambda target, chunk: commits.of(target, chunk, self.of(chunk))

    def sequences(self, start: int, stop: int) -> tuple[str, ...]:
        """Return a digest of each sequence that overlaps a range of tokens.

        The numbers of a token depend on its whole sequence and on no other sequence.
        """
        return tuple(
            self._sequence(index) for index in sequences_of(self.sequence_starts, start, stop)
        )

    def cut_here(self, rows: Rows) -> bool:
        """Return whether rows are in their chunk, and begin and end at chunk or sequence edges.

        The result is False for rows of a run with another chunk size. Their summaries would count
        in another chunk, and would divide sequences at other tokens.
        """
        size = self.layout.chunk_tokens
        first = rows.chunk * size
        if not first <= rows.start < rows.stop <= first + size:
            return False
        edges = (first, first + size)
        return all(edge in edges or edge in self._starts for edge in (rows.start, rows.stop))

    def same_until(self, start: int, stop: int, sequences: tuple[str, ...]) -> int:
        """Return the token up to which a range still has sequences with these digests."""
        last = min(stop, int(self.sequence_starts[-1]))
        if start >= last:
            return start
        reached = sequences_of(self.sequence_starts, start, last)
        pairs = zip(reached, sequences, strict=False)
        same = list(takewhile(lambda pair: self._sequence(pair[0]) == pair[1], pairs))
        return min(last, int(self.sequence_starts[same[-1][0] + 1])) if same else start

    @cached_property
    def _known(self) -> dict[int, str]:
        return {}

    def _sequence(self, index: int) -> str:
        first, end = self.sequence_starts[index : index + 2]
        digest = hashlib.sha256(self._common.encode())
        digest.update(int(first).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(self.token_ids[first:end], "<i4").tobytes())
        return digest.hexdigest()[:32]

    @cached_property
    def _starts(self) -> frozenset[int]:
        return frozenset(self.sequence_starts.tolist())

    @cached_property
    def _common(self) -> str:
        numerics = {"dtype": self.layout.dtype, "numerics": NUMERICS_VERSION}
        return fingerprint({"model": self.model, **numerics})


def sequences_of(starts: NDArray[np.int64], start: int, stop: int) -> range:
    """Return the sequences that overlap a range of tokens."""
    first = int(np.searchsorted(starts, start, side="right")) - 1
    return range(first, int(np.searchsorted(starts, stop, side="left")))
