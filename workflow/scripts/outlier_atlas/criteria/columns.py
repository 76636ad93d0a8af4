"""Values of columns that many tables share, computed from indices along the token axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.statistics.bootstrap import Interval
from outlier_atlas.statistics.codes import Int64
from outlier_atlas.statistics.tokens import TokenOutlier

Columns = dict[str, Any]


def sequences_and_positions(tokens: TokenStore, indices: ArrayLike) -> tuple[Int64, Int64]:
    """Return sequence and position of tokens; they are meaningless for an index of -1."""
    index = np.asarray(indices, np.int64)
    sequence = np.searchsorted(tokens.sequence_starts, index, side="right") - 1
    return sequence, index - tokens.sequence_starts[np.maximum(sequence, 0)]


def places(tokens: TokenStore, indices: ArrayLike) -> Columns:
    """Return index, sequence and position of tokens; null for an index of -1."""
    index = np.asarray(indices, np.int64)
    sequence, position = sequences_and_positions(tokens, index)
    nowhere = index < 0
    return {
        "token_index": pa.array(index, mask=nowhere),
        "sequence": pa.array(sequence, mask=nowhere),
        "position": pa.array(position, mask=nowhere),
    }


def token_columns(tokens: TokenStore, indices: Sequence[int]) -> Columns:
    """Return id and text of tokens; null for an index of -1."""
    valid = [index for index in indices if index >= 0]
    texts = iter(tokens.token_text(valid))
    return {
        "token_id": [int(tokens.token_ids[i]) if i >= 0 else None for i in indices],
        "token_text": [next(texts) if i >= 0 else None for i in indices],
    }


def or_null(values: ArrayLike) -> Any:
    """Return an Arrow array of numbers, with null for NaN."""
    numbers = np.asarray(values, np.float64)
    return pa.array(numbers, mask=np.isnan(numbers))


def ratio(value: float, reference: float) -> float:
    """Return |value| over a reference; infinite if the reference is 0."""
    return abs(value) / reference if reference else float("inf")


def located(tokens: TokenStore, indices: Sequence[int]) -> Columns:
    """Return index, sequence, position, id and text of tokens; null for an index of -1."""
    return places(tokens, indices) | token_columns(tokens, indices)


def end_columns(name: str, ends: tuple[ArrayLike, ArrayLike]) -> Columns:
    """Return the two columns of a number's intervals, given both ends; null for NaN."""
    low, high = ends
    return {f"{name}_low": or_null(low), f"{name}_high": or_null(high)}


def interval_columns(name: str, intervals: Sequence[Interval]) -> Columns:
    """Return the two columns of a number's intervals; null if there is no interval."""
    return {
        f"{name}_low": [None if ends is None else ends[0] for ends in intervals],
        f"{name}_high": [None if ends is None else ends[1] for ends in intervals],
    }


def outlier_columns(
    found: Sequence[tuple[int, TokenOutlier]], site: str, tokens: TokenStore, reference: str
) -> Columns:
    """Return the columns of tokens that are outliers, each with its layer.

    Args:
        reference: name of the column with the number that values are compared with.
    """
    return {
        "site": [site] * len(found),
        "layer": [layer for layer, _ in found],
        **located(tokens, [outlier.token for _, outlier in found]),
        "channel": [outlier.channel for _, outlier in found],
        "value": [outlier.value for _, outlier in found],
        reference: [outlier.reference for _, outlier in found],
        f"{reference}_ratio": [ratio(o.value, o.reference) for _, o in found],
    }
