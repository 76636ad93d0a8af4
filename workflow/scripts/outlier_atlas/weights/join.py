"""The tables of a run that weights have a part in, alone or with its activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from outlier_atlas import tables
from outlier_atlas.criteria.magnitudes.tables import CHANNEL_MAXIMA
from outlier_atlas.settings.detection import SmoothQuantSettings
from outlier_atlas.tables.files import ROWS_TOGETHER
from outlier_atlas.weights.smoothquant import smoothquant_scales

Maxima = dict[tuple[str, int], NDArray[np.float32]]
"""By site and layer, the largest magnitude of each channel."""


def join(settings: Mapping[str, Any], weights: Path | None, run_tables: Path) -> None:
    """Write the tables of a run that weights have a part in; empty ones where none were measured.

    Args:
        settings: the block `detection.smoothquant`.
        weights: folder of the model's own tables; None where its weights were not measured.
        run_tables: the run's `tables` folder, with its `channel_maxima`.
    """
    smoothquant = SmoothQuantSettings.model_validate(settings)
    for table in (tables.WEIGHTS, tables.WEIGHT_ERRORS):
        columns = tables.read(weights, table).to_pydict() if weights else _empty(table)
        tables.write(run_tables, table, columns)
    scales = _empty(tables.SMOOTHQUANT_SCALES)
    if weights:
        activations = activation_maxima(run_tables)
        ends = {end: activation_maxima(run_tables, f"value_{end}") for end in ("low", "high")}
        for part in _scales(activations, weight_maxima(weights), smoothquant.alpha, ends):
            for name, values in part.items():
                scales[name].extend(values)
    left_out = tables.left_out(run_tables, CHANNEL_MAXIMA)
    parameters = tables.parameters(run_tables, CHANNEL_MAXIMA)
    parameters["smoothquant"] = smoothquant.model_dump(mode="json")
    table = tables.SMOOTHQUANT_SCALES.under(parameters)
    tables.write(run_tables, table, scales, left_out)


def activation_maxima(run_tables: Path, column: str = "value") -> Maxima:
    """The largest |x| of each channel; NaN where nothing was finite. In the order of the table.

    Args:
        column: of `channel_maxima`: an end of its interval, perhaps.
    """
    maxima = tables.read(run_tables, CHANNEL_MAXIMA)
    found: dict[tuple[str, int], list[float]] = {}
    for place, value in zip(_places(maxima), maxima[column].to_pylist(), strict=True):
        found.setdefault(place, []).append(np.nan if value is None else abs(value))
    return {place: np.array(values, np.float32) for place, values in found.items()}


def weight_maxima(weights: Path) -> Maxima:
    """The largest |w| of each input channel over all matrices that a site is multiplied with."""
    found: Maxima = {}
    file = pq.ParquetFile(weights / f"{tables.WEIGHT_CHANNELS.name}.parquet")
    for batch in file.iter_batches(ROWS_TOGETHER, columns=["site", "layer", "input_maxima"]):
        for place, values in zip(_places(batch), batch["input_maxima"], strict=True):
            if place[0] is not None:
                magnitudes = np.abs(values.values.to_numpy())
                found[place] = np.maximum(found.get(place, magnitudes), magnitudes)
    return found


def _places(rows: Any) -> Iterator[Any]:
    """Site and layer of each row of a table, or of a part of it."""
    return zip(rows["site"].to_pylist(), rows["layer"].to_pylist(), strict=True)


def _scales(
    activations: Maxima, weights: Maxima, alpha: float, ends: Mapping[str, Maxima]
) -> Iterator[dict[str, list[Any]]]:
    for (site, layer), largest in activations.items():
        if (site, layer) not in weights:
            continue
        of_weights = weights[site, layer]
        scales = smoothquant_scales(largest, of_weights, alpha)
        yield {
            "site": [site] * len(largest),
            "layer": [layer] * len(largest),
            "channel": list(range(len(largest))),
            "activation_max": _or_none(largest),
            "weight_max": of_weights.tolist(),
            "scale": _or_none(scales),
            **{f"activation_max_{end}": _or_none(of[site, layer]) for end, of in ends.items()},
        }


def _or_none(values: NDArray[Any]) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]


def _empty(table: tables.Table) -> dict[str, list[Any]]:
    return {column.name: [] for column in table.columns}
