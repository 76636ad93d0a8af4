"""The report's section on weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from statistics import median_low
from typing import Any

from outlier_atlas.text import shown

Row = dict[str, Any]

NOT_ROUNDED = {"float64", "float32", "float16", "bfloat16", "F64", "F32", "F16", "BF16"}
"""Types of stored weights whose values are floating-point numbers as they were trained."""

DEFINITION = (
    "Of the weight matrices of the decoder as the checkpoint has them, quantized ones dequantized: "
    "the largest |w| with its place, W[output channel, input channel], and what number formats do "
    "to them, rounded to nearest without calibration."
)


def section(weights: Sequence[Row], errors: Sequence[Row], most: int) -> Row:
    """What the section shows.

    Args:
        weights, errors: of the tables `weights` and `weight_errors`, in their order.
        most: rows that a table shows.
    """
    largest = [_largest(list(rows)) for _, rows in groupby(weights, key=lambda row: row["layer"])]
    largest = sorted((row for row in largest if row), key=lambda row: -abs(row["value"]))
    return {
        "definition": DEFINITION,
        "matrices": len(weights),
        "rounded_before": _rounded_before(weights),
        "largest": largest[:most],
        "largest_shown": shown(len(largest), most, "layer"),
        "formats": _formats(errors),
    }


def _rounded_before(weights: Sequence[Row]) -> str:
    """A sentence on weights that the checkpoint stores rounded; empty where it has none."""
    rounded = [row["dtype"] for row in weights if row["dtype"] not in NOT_ROUNDED]
    if not rounded:
        return ""
    kinds = ", ".join(kind for kind, _ in Counter(rounded).most_common())
    return (
        f"The checkpoint stores {len(rounded):,} of {len(weights):,} matrices rounded ({kinds}): "
        f"the errors of these are of weights that had been rounded before, and are smaller or "
        f"larger than those of the weights that the model was trained with."
    )


def _largest(rows: Sequence[Row]) -> Row:
    """The row with the largest |w| of a layer, the first of equals; empty where none is finite."""
    known = [row for row in rows if not math.isnan(row["value"])]
    return max(known, key=lambda row: abs(row["value"]), default={})


def _formats(errors: Sequence[Row]) -> list[Row]:
    """Each format over all matrices, the one that keeps most of them first."""
    by_format: dict[tuple[str, str], list[Row]] = {}
    for row in errors:
        if not math.isnan(row["sqnr"]):
            by_format.setdefault((row["format"], row["granularity"]), []).append(row)
    rows = [_format(name, rows) for name, rows in by_format.items()]
    return sorted(rows, key=lambda row: -row["median"])


def _format(name: tuple[str, str], rows: Sequence[Row]) -> Row:
    return {
        "format": name[0],
        "granularity": name[1],
        "median": median_low(row["sqnr"] for row in rows),
        "lowest": min(rows, key=lambda row: row["sqnr"]),
        "farthest": max(rows, key=lambda row: row["rmse"]),
    }
