"""Heatmaps as images: pooling, colour scale and PNG."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.criteria.figure import Heatmap

COLUMNS = 1152
"""Maximum number of columns; with more channels, a column shows the maximum of several."""

PEAKS = 6
"""Maximum number of columns that are labelled."""

MAGMA = (
    "000004", "0a0822", "1d1147", "36106b", "51127c", "6a1c81", "832681", "9c2e7f", "b73779",
    "d0416f", "e75263", "f56b5c", "fc8961", "fea772", "fec488", "fde2a3", "fcfdbf",
)  # fmt: skip
"""Colours of the map `magma` (public domain, CC0) at equal distances."""

COLOURS = 255
"""Number of colours of an image; index 0 is transparent."""


@dataclass(frozen=True)
class Scaled:
    """A heatmap with its colour scale.

    Attributes:
        shown: values by layer and column of the image; NaN without a value.
        width: number of columns of the heatmap in a column of the image.
        low, high: ends of the colour scale.
    """

    shown: NDArray[np.float64]
    width: int
    low: float
    high: float


def scaled(plot: Heatmap) -> Scaled | None:
    """Return a heatmap with its colour scale; None without a positive value on a logarithmic one.

    The lowest percent of the values would use up the colour range.
    """
    if not plot.logarithmic:
        return Scaled(plot.values, 1, 0.0, 1.0)
    shown, width = pooled(plot.values)
    positive = shown[shown > 0]
    if not len(positive):
        return None
    low, high = float(np.percentile(positive, 1)), float(positive.max())
    return Scaled(np.where(shown > 0, shown, np.nan), width, low, high if high > low else low * 10)


def pooled(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Pool neighbouring columns by their maximum into at most `COLUMNS` columns.

    An image would otherwise skip most channels of a wide model, including outliers.

    Returns:
        The pooled values, and the number of columns that are pooled into one.
    """
    width = -(-values.shape[1] // COLUMNS)
    padding = -values.shape[1] % width
    padded = np.pad(np.nan_to_num(values), ((0, 0), (0, padding)))
    return padded.reshape(len(values), -1, width).max(axis=2), width


def peaks(values: NDArray[np.float64]) -> list[int]:
    """Return the columns with the largest maxima, at a minimum distance from each other."""
    largest = np.nan_to_num(values).max(axis=0)
    room = values.shape[1] / 22
    named: list[int] = []
    for column in np.argsort(-largest, kind="stable")[:40].tolist():
        if len(named) < PEAKS and all(abs(column - other) > room for other in named):
            named.append(column)
    return named


def empty_rows(plot: Heatmap) -> list[int]:
    """Return the rows without a finite value."""
    return [int(row) for row in np.flatnonzero(np.isnan(plot.values).all(axis=1))]


def column_label(plot: Heatmap, image: Scaled) -> str:
    """Return the label of the column axis, with what the image pools and hatches."""
    if not plot.logarithmic:
        return plot.column
    each = "" if image.width == 1 else f" (a column: the largest of {image.width})"
    return f"{plot.column}{each}{'; hatched: nothing finite' if empty_rows(plot) else ''}"


def png(plot: Heatmap, image: Scaled) -> bytes:
    """Return an image with a pixel for each value, the first layer at the bottom."""
    with np.errstate(invalid="ignore"):
        clipped = np.clip(image.shown, image.low, image.high)
        if plot.logarithmic:
            place = np.log(clipped / image.low) / np.log(image.high / image.low)
        else:
            place = clipped
        index = np.nan_to_num(1 + place * (COLOURS - 1)).round()
    rows = index[::-1].astype(np.uint8)
    height, width = rows.shape
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(name, content)
        for name, content in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            (b"PLTE", bytes(3) + _palette()),
            (b"tRNS", b"\0"),
            (b"IDAT", zlib.compress(filtered.tobytes(), 9)),
            (b"IEND", b""),
        )
    )


def _palette() -> bytes:
    stops = np.array([list(bytes.fromhex(colour)) for colour in MAGMA], float)
    at = np.linspace(0, len(MAGMA) - 1, COLOURS)
    each = [np.interp(at, np.arange(len(MAGMA)), stops[:, part]) for part in range(3)]
    return np.stack(each, axis=1).round().astype(np.uint8).tobytes()


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum
