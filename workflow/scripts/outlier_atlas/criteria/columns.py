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
    """Return the sequence and position of each token; meaningless for an index of -1."""
    index = np.asarray(indices, np.int64)
    sequence = np.searchsorted(tokens.sequence_starts, index, side="right") - 1
    return sequence, index - tokens.sequence_starts[np.maximum(sequence, 0)]


def places(tokens: TokenStore, indices: ArrayLike) -> Columns:
    """Return the index, sequence and position columns of tokens; null for an index of -1."""
    index = np.asarray(indices, np.int64)
    sequence, position = sequences_and_positions(tokens, index)
    invalid = index < 0
    return {
        "token_index": pa.array(index, mask=invalid),
        "sequence": pa.array(sequence, mask=invalid),
        "position": pa.array(position, mask=invalid),
    }


def token_columns(tokens: TokenStore, indices: Sequence[int]) -> Columns:
    """Return the id and text columns of tokens; null for an index of -1."""
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
    """Return |value| / reference; infinite if the reference is 0."""
    return abs(value) / reference if reference else float("inf")


def located(tokens: TokenStore, indices: Sequence[int]) -> Columns:
    """Return the index, sequence, position, id and text columns; null for an index of -1."""
    return places(tokens, indices) | token_columns(tokens, indices)


def end_columns(name: str, ends: tuple[ArrayLike, ArrayLike]) -> Columns:
    """Return the columns of the lower and upper ends of a number's intervals; null for NaN."""
    low, high = ends
    return {f"{name}_low": or_null(low), f"{name}_high": or_null(high)}


def interval_columns(name: str, intervals: Sequence[Interval]) -> Columns:
    """Return the columns of both ends of a number's intervals; null without an interval."""
    return {
        f"{name}_low": [None if ends is None else ends[0] for ends in intervals],
        f"{name}_high": [None if ends is None else ends[1] for ends in intervals],
    }


def outlier_columns(
    outliers: Sequence[tuple[int, TokenOutlier]], site: str, tokens: TokenStore, reference: str
) -> Columns:
    """Return the columns of outlier tokens.

    Args:
        outliers: layer and outlier of each row.
        site: the site of all outliers.
        tokens: the token store.
        reference: name of the column with the number that values are compared with.
    """
    return {
        "site": [site] * len(outliers),
        "layer": [layer for layer, _ in outliers],
        **located(tokens, [outlier.token for _, outlier in outliers]),
        "channel": [outlier.channel for _, outlier in outliers],
        "value": [outlier.value for _, outlier in outliers],
        reference: [outlier.reference for _, outlier in outliers],
        f"{reference}_ratio": [ratio(o.value, o.reference) for _, o in outliers],
    }
