"""Errors of rounding activations to low-bit number formats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from outlier_atlas.criteria.columns import (
    Columns,
    interval_columns,
)
from outlier_atlas.criteria.measure import (
    Context,
    Measure,
    Measures,
    Place,
    Taker,
)
from outlier_atlas.criteria.quantization_error.tables import DESCRIPTION, QUANTIZATION_ERROR
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.statistics.codes import Float64
from outlier_atlas.statistics.elements import FORMATS
from outlier_atlas.statistics.quantization import OUTLIERS_QUANTIZED, QuantizationSummary
from outlier_atlas.tables.table import Table


class QuantizationErrorMeasure(Measure):
    """Quantization errors at the sites of `detection.quantization_error`."""

    description = DESCRIPTION
    summaries = "quantization"

    def __init__(self, context: Context, others: Measures) -> None:
        super().__init__(context, others)
        sites = context.settings.quantization_error.sites
        self.of_places = {
            place: QuantizationErrors(context.sequences)
            for place in context.places
            if place[0] in sites
        }

    def takers(self) -> Iterable[tuple[Place, Taker]]:
        return ((place, each.update) for place, each in self.of_places.items())

    def tables(self) -> Iterator[tuple[Table, Columns]]:
        yield QUANTIZATION_ERROR, _errors(self.of_places, self.context.bootstrap)


@dataclass
class QuantizationErrors:
    """An accumulator for the errors of the tiles of one site and layer.

    Attributes:
        sequences: number of sequences of the run.
        outlier_channels: largest number of outlier channels of a tile, (sequence,); NaN without a
            tile.
        values: number of values.
        squares: sum of squares of the values.
        errors: sum of absolute errors, by format and treatment of outlier channels.
        square_errors: sum of squared errors, likewise.
    """

    sequences: int
    outlier_channels: Float64 = field(init=False)
    values: int = 0
    squares: float = 0.0
    errors: Float64 = field(
        default_factory=lambda: np.zeros(len(FORMATS) * len(OUTLIERS_QUANTIZED))
    )
    square_errors: Float64 = field(
        default_factory=lambda: np.zeros(len(FORMATS) * len(OUTLIERS_QUANTIZED))
    )

    def __post_init__(self) -> None:
        self.outlier_channels = np.full(self.sequences, np.nan)

    def update(self, summary: QuantizationSummary) -> None:
        """Add the summary of a tile."""
        most = np.fmax(self.outlier_channels[summary.sequence], summary.outlier_channels)
        self.outlier_channels[summary.sequence] = most
        self._add(summary)

    def merge(self, other: QuantizationErrors) -> None:
        """Add the contents of another accumulator of the same site and layer."""
        self.outlier_channels = np.fmax(self.outlier_channels, other.outlier_channels)
        self._add(other)

    def _add(self, summary: QuantizationSummary | QuantizationErrors) -> None:
        self.values += summary.values
        self.squares += summary.squares
        self.errors += summary.errors
        self.square_errors += summary.square_errors


def _errors(errors: Mapping[Place, QuantizationErrors], bootstrap: Bootstrap) -> Columns:
    """Return the columns of the table of quantization errors."""
    rows = [
        (place, each, format_, scale_of, index, kept)
        for place, each in errors.items()
        for index, ((format_, scale_of), kept) in enumerate(
            product(FORMATS, range(len(OUTLIERS_QUANTIZED)))
        )
    ]
    most = {place: bootstrap.maxima(each.outlier_channels) for place, each in errors.items()}
    return {
        "site": [site for (site, _), *_ in rows],
        "layer": [layer for (_, layer), *_ in rows],
        "format": [format_ for _, _, format_, *_ in rows],
        "scale_of": [scale_of for *_, scale_of, _, _ in rows],
        "outlier_channels": [
            "quantized" if OUTLIERS_QUANTIZED[kept] else "kept" for *_, kept in rows
        ],
        "most_outlier_channels": [
            int(np.fmax.reduce(each.outlier_channels)) for _, each, *_ in rows
        ],
        "values": [each.values for _, each, *_ in rows],
        "rmse": [_root(e.square_errors[i], e.values) for _, e, _, _, i, _ in rows],
        "mae": [_over(e.errors[i], e.values) for _, e, _, _, i, _ in rows],
        "sqnr": [_decibel(e.squares, e.square_errors[i]) for _, e, _, _, i, _ in rows],
        **interval_columns("most_outlier_channels", [most[place] for place, *_ in rows]),
    }


def _over(total: float, count: int) -> float | None:
    return float(total / count) if count else None


def _root(total: float, count: int) -> float | None:
    return float(np.sqrt(total / count)) if count else None


def _decibel(signal: float, error: float) -> float | None:
    return float(10 * np.log10(signal / error)) if signal and error else None
