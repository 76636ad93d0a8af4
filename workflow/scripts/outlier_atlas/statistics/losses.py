"""Losses of tokens, by sequence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def predicted(
    losses_T: NDArray[np.float32], sequence_starts: NDArray[np.int64]
) -> list[NDArray[np.float32]]:
    """Return the losses of the predicted tokens of each sequence: all except its first token.

    Args:
        losses_T: (token,): losses of all tokens.
        sequence_starts: (sequences + 1,): index of each sequence's first token, and the number of
            tokens.
    """
    starts, stops = sequence_starts[:-1], sequence_starts[1:]
    return [losses_T[start + 1 : stop] for start, stop in zip(starts, stops, strict=True)]


def sums(losses_by_sequence: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Return the sum of the losses of each sequence in nats, (sequence,)."""
    return np.array([losses.sum(dtype=np.float64) for losses in losses_by_sequence])


def counts(losses_by_sequence: list[NDArray[np.float32]]) -> NDArray[np.int64]:
    """Return the number of predicted tokens of each sequence, (sequence,)."""
    return np.array([len(losses) for losses in losses_by_sequence])
