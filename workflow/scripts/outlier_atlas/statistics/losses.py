"""Losses of tokens, by their sequences."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def predicted(
    losses_T: NDArray[np.float32], sequence_starts: NDArray[np.int64]
) -> list[NDArray[np.float32]]:
    """Of each sequence the losses of all tokens but the first, which has nothing before it.

    Args:
        sequence_starts: (sequences + 1,), index of each sequence's first token.
    """
    starts, stops = sequence_starts[:-1], sequence_starts[1:]
    return [losses_T[start + 1 : stop] for start, stop in zip(starts, stops, strict=True)]


def sums(of_sequences: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """(sequence,): the sum of the losses of each sequence, in nats."""
    return np.array([losses.sum(dtype=np.float64) for losses in of_sequences])


def counts(of_sequences: list[NDArray[np.float32]]) -> NDArray[np.int64]:
    """(sequence,): the number of predicted tokens of each sequence."""
    return np.array([len(losses) for losses in of_sequences])
