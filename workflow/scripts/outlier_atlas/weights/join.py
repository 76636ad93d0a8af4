"""The weight tables of a run, with and without its activations."""

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
"""The largest magnitude of each channel, (channel,), by site and layer."""


def join(settings: Mapping[str, Any], weights: Path | None, run_tables: Path) -> None:
    """Write the weight tables of a run; they are empty if weights were not measured.

    Args:
        settings: the block `detection.smoothquant`.
        weights: folder of the model's weight tables; None if its weights were not measured.
        run_tables: the run's `tables` folder, with `channel_maxima`.
    """
    smoothquant = SmoothQuantSettings.model_validate(settings)
    for table in (tables.WEIGHTS, tables.WEIGHT_ERRORS):
        columns = tables.read(weights, table).to_pydict() if weights else _empty(table)
        tables.write(run_tables, table, columns)
    scales = _empty(tables.SMOOTHQUANT_SCALES)
    if weights:
        activations = activation_maxima(run_tables)
        ends = {end: activation_maxima(run_tables, f"value_{end}") for end in ("low", "high")}
        for columns in _scales(activations, weight_maxima(weights), smoothquant.alpha, ends):
            for name, values in columns.items():
                scales[name].extend(values)
    left_out = tables.left_out(run_tables, CHANNEL_MAXIMA)
    parameters = tables.parameters(run_tables, CHANNEL_MAXIMA)
    parameters["smoothquant"] = smoothquant.model_dump(mode="json")
    table = tables.SMOOTHQUANT_SCALES.with_parameters(parameters)
    tables.write(run_tables, table, scales, left_out)


def activation_maxima(run_tables: Path, column: str = "value") -> Maxima:
    """Return the largest |x| of each channel, in the order of the table `channel_maxima`.

    Channels without a finite value have NaN.

    Args:
        column: column of `channel_maxima`, such as an end of the interval.
    """
    maxima = tables.read(run_tables, CHANNEL_MAXIMA)
    magnitudes: dict[tuple[str, int], list[float]] = {}
    for key, value in zip(_sites_and_layers(maxima), maxima[column].to_pylist(), strict=True):
        magnitudes.setdefault(key, []).append(np.nan if value is None else abs(value))
    return {key: np.array(values, np.float32) for key, values in magnitudes.items()}


def weight_maxima(weights: Path) -> Maxima:
    """Return the largest |w| of each input channel over all matrices that multiply a site."""
    maxima: Maxima = {}
    file = pq.ParquetFile(weights / f"{tables.WEIGHT_CHANNELS.name}.parquet")
    for batch in file.iter_batches(ROWS_TOGETHER, columns=["site", "layer", "input_maxima"]):
        for key, values in zip(_sites_and_layers(batch), batch["input_maxima"], strict=True):
            if key[0] is not None:
                magnitudes = np.abs(values.values.to_numpy())
                maxima[key] = np.maximum(maxima.get(key, magnitudes), magnitudes)
    return maxima


def _sites_and_layers(rows: Any) -> Iterator[Any]:
    """Return an iterator over (site, layer) of the rows of a table or of a batch of it."""
    return zip(rows["site"].to_pylist(), rows["layer"].to_pylist(), strict=True)


def _scales(
    activations: Maxima, weights: Maxima, alpha: float, ends: Mapping[str, Maxima]
) -> Iterator[dict[str, list[Any]]]:
    for (site, layer), activation_max in activations.items():
        if (site, layer) not in weights:
            continue
        weight_max = weights[site, layer]
        scales = smoothquant_scales(activation_max, weight_max, alpha)
        yield {
            "site": [site] * len(activation_max),
            "layer": [layer] * len(activation_max),
            "channel": list(range(len(activation_max))),
            "activation_max": _nan_to_none(activation_max),
            "weight_max": weight_max.tolist(),
            "scale": _nan_to_none(scales),
            **{
                f"activation_max_{end}": _nan_to_none(maxima[site, layer])
                for end, maxima in ends.items()
            },
        }


def _nan_to_none(values: NDArray[Any]) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]


def _empty(table: tables.Table) -> dict[str, list[Any]]:
    return {column.name: [] for column in table.columns}
