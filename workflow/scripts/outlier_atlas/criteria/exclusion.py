"""Tokens that a run excludes from its numbers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.settings.detection import ExcludeSettings
from outlier_atlas.statistics.codes import Int64


@dataclass(frozen=True)
class Exclusion:
    """The rule that excludes tokens.

    Attributes:
        first_positions: number of tokens to exclude at the beginning of each sequence.
        token_ids: ids of the tokens to exclude, ascending.
    """

    first_positions: int
    token_ids: tuple[int, ...]

    @classmethod
    def of(cls, settings: ExcludeSettings, special_ids: Collection[int]) -> Exclusion:
        """Return the exclusion that the settings describe.

        Args:
            settings: the block `detection.exclude`.
            special_ids: ids of the tokenizer's special tokens.
        """
        ids = {*settings.token_ids, *(special_ids if settings.special_tokens else [])}
        return cls(settings.first_positions, tuple(sorted(ids)))

    def kept(
        self, tokens: TokenStore, first: int, start: int, stop: int
    ) -> NDArray[np.bool_] | None:
        """Return a mask (token,) of the tokens `start` to `stop` that count; None if all count.

        Args:
            tokens: the token store.
            first: index of the first token of the sequence that contains these tokens.
            start: index of the first token.
            stop: index after the last token.
        """
        if not self.first_positions and not self.token_ids:
            return None
        positions = np.arange(start - first, stop - first)
        kept = positions >= self.first_positions
        kept &= ~np.isin(tokens.token_ids[start:stop], self.token_ids)
        return None if kept.all() else kept

    def kept_of_sequences(self, tokens: TokenStore) -> Int64:
        """Return the number of tokens that count in each sequence, (sequence,)."""
        starts = tokens.sequence_starts.tolist()
        each = [
            (self.kept(tokens, start, start, stop), stop - start)
            for start, stop in pairwise(starts)
        ]
        return np.array([size if kept is None else kept.sum() for kept, size in each], np.int64)

    def record(self) -> Any:
        """Return a record of the exclusion; None if nothing is excluded."""
        if not self.first_positions and not self.token_ids:
            return None
        return {"first_positions": self.first_positions, "token_ids": list(self.token_ids)}
