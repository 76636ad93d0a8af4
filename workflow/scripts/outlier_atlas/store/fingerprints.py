"""What stands for all that the numbers of a chunk depend on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.files import fingerprint
from outlier_atlas.store.commits import Rows
from outlier_atlas.store.layout import SUMMARY_VERSION, Layout

NUMERICS_VERSION = 1
"""Raised when a change to the code changes numbers of the extraction: all rows are then stale."""


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprint of each chunk of a run as it is configured now.

    Attributes:
        layout: of the run.
        token_ids: (tokens,).
        sequence_starts: (sequences + 1,): index of each sequence's first token, and the number of
            tokens.
        model: fingerprint of the weights.
    """

    layout: Layout
    token_ids: NDArray[np.int32]
    sequence_starts: NDArray[np.int64]
    model: str

    def of(self, chunk: int) -> str:
        """The fingerprint of a chunk."""
        if chunk not in self._known:
            self._known[chunk] = self._of(chunk)
        return self._known[chunk]

    def summary(self, rows: Rows, left_out: Any = None) -> str:
        """The fingerprint of a summary of rows.

        Args:
            left_out: stands for the tokens that it leaves out.
        """
        return fingerprint(
            {
                "values": self.of(rows.chunk),
                "rows": [rows.start, rows.stop],
                "left_out": left_out,
                "summary": SUMMARY_VERSION,
            }
        )

    @cached_property
    def _known(self) -> dict[int, str]:
        return {}

    def _of(self, chunk: int) -> str:
        start, stop = self.layout.chunk_range(chunk)
        digest = hashlib.sha256()
        for sequence in sequences_of(self.sequence_starts, start, stop):
            first, end = self.sequence_starts[sequence : sequence + 2]
            digest.update(int(first).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(self.token_ids[first:end], "<i4").tobytes())
        return fingerprint(
            {
                "model": self.model,
                "dtype": self.layout.dtype,
                "numerics": NUMERICS_VERSION,
                "tokens": digest.hexdigest(),
            }
        )


def sequences_of(starts: NDArray[np.int64], start: int, stop: int) -> range:
    """The sequences with tokens in a range of tokens."""
    first = int(np.searchsorted(starts, start, side="right")) - 1
    return range(first, int(np.searchsorted(starts, stop, side="left")))
