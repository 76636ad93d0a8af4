"""Columns that many tables have, from indices along the token axis."""

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
    """Sequence and position of tokens; without meaning where an index is -1."""
    index = np.asarray(indices, np.int64)
    sequence = np.searchsorted(tokens.sequence_starts, index, side="right") - 1
    return sequence, index - tokens.sequence_starts[np.maximum(sequence, 0)]


def places(tokens: TokenStore, indices: ArrayLike) -> Columns:
    """Index, sequence and position of tokens; null where an index is -1."""
    index = np.asarray(indices, np.int64)
    sequence, position = sequences_and_positions(tokens, index)
    nowhere = index < 0
    return {
        "token_index": pa.array(index, mask=nowhere),
        "sequence": pa.array(sequence, mask=nowhere),
        "position": pa.array(position, mask=nowhere),
    }


def token_columns(tokens: TokenStore, indices: Sequence[int]) -> Columns:
    """Id and text of tokens; null where an index is -1."""
    there = [index for index in indices if index >= 0]
    texts = iter(tokens.token_text(there))
    return {
        "token_id": [int(tokens.token_ids[i]) if i >= 0 else None for i in indices],
        "token_text": [next(texts) if i >= 0 else None for i in indices],
    }


def or_null(values: ArrayLike) -> Any:
    """An Arrow array of numbers; null where one is NaN."""
    numbers = np.asarray(values, np.float64)
    return pa.array(numbers, mask=np.isnan(numbers))


def ratio(value: float, reference: float) -> float:
    """|value| over a reference; infinite over 0."""
    return abs(value) / reference if reference else float("inf")


def located(tokens: TokenStore, indices: Sequence[int]) -> Columns:
    """Index, sequence, position, id and text of tokens; null where an index is -1."""
    return places(tokens, indices) | token_columns(tokens, indices)


def end_columns(name: str, ends: tuple[ArrayLike, ArrayLike]) -> Columns:
    """The two columns of a number's intervals, from their ends; null where one is NaN."""
    low, high = ends
    return {f"{name}_low": or_null(low), f"{name}_high": or_null(high)}


def interval_columns(name: str, intervals: Sequence[Interval]) -> Columns:
    """The two columns of a number's intervals; null where there is none."""
    return {
        f"{name}_low": [None if ends is None else ends[0] for ends in intervals],
        f"{name}_high": [None if ends is None else ends[1] for ends in intervals],
    }


def outlier_columns(
    found: Sequence[tuple[int, TokenOutlier]], site: str, tokens: TokenStore, reference: str
) -> Columns:
    """Tokens that are outliers as a whole, each with its layer.

    Args:
        reference: name of the column of what they stand out from.
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
