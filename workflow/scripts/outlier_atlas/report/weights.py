"""Section of the report on weights."""

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
"""Types of stored weights that are floating-point numbers, not rounded to a coarser format."""

DEFINITION = (
    "Of the weight matrices of the decoder as the checkpoint has them, quantized ones dequantized: "
    "the largest |w| with its place, W[output channel, input channel], and what number formats do "
    "to them, rounded to nearest without calibration."
)


def section(weights: Sequence[Row], errors: Sequence[Row], most: int) -> Row:
    """Return the values of the section.

    Args:
        weights: rows of the table `weights`, in its order.
        errors: rows of the table `weight_errors`, in its order.
        most: maximum number of rows of a table in the report.
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
    """Return a sentence on weights that the checkpoint stores in a rounded format, or ""."""
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
    """Return the first row with the largest |w| of a layer; empty without a finite weight."""
    known = [row for row in rows if not math.isnan(row["value"])]
    return max(known, key=lambda row: abs(row["value"]), default={})


def _formats(errors: Sequence[Row]) -> list[Row]:
    """Return a row for each format over all matrices, in descending order of median SQNR."""
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
