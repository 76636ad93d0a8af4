"""The weights stage: one pass over the checkpoint of a model, without a forward pass."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from outlier_atlas import tables
from outlier_atlas.checkpoint.weight_integrity import CheckedWeights
from outlier_atlas.files import read_record
from outlier_atlas.loading.matrices import Checkpoint, Matrix
from outlier_atlas.phases import note
from outlier_atlas.plan.job_sizes import of_checkpoint
from outlier_atlas.progress import progress
from outlier_atlas.roles.cached_architecture import described
from outlier_atlas.roles.decoder_weights import StoredWeight, stored_weights
from outlier_atlas.statistics.weights import WeightStatistics, weight_statistics

Row = dict[str, Any]


def measure(
    model_record: Path, resources: Path, trust_remote_code: bool, folder: Path, threads: int
) -> None:
    """Measure the weights of a recorded model and write the tables as Parquet and CSV.

    Each thread needs memory for some rows of a matrix, independent of the size of the model.

    Args:
        model_record: record of the model.
        resources: folder that the record is relative to.
        trust_remote_code: whether code of the checkpoint may run.
        folder: folder of the tables `weights`, `weight_errors` and `weight_channels`.
        threads: number of matrices that are measured at the same time.

    Raises:
        ValueError: The model is missing, or a weight is quantized in a format that cannot be
            dequantized.
    """
    CheckedWeights(model_record, resources).check()
    record = read_record(model_record)
    note(sizes=of_checkpoint(record["weight_bytes"]))
    source, config, architecture = described(record, resources, trust_remote_code)
    files = record["files"]
    weights = stored_weights(source, files, config, architecture, trust_remote_code)
    rows_of: dict[tables.Table, list[Row]] = {tables.WEIGHTS: [], tables.WEIGHT_ERRORS: []}
    with (
        Checkpoint(source, files, config) as checkpoint,
        tables.streaming(folder, tables.WEIGHT_CHANNELS) as write_channels,
        _one_torch_thread(),
    ):
        for matrix, statistics in _measured(checkpoint, weights, threads):
            write_channels(_channels(matrix, statistics))
            rows_of[tables.WEIGHTS].append(_row(matrix, statistics))
            rows_of[tables.WEIGHT_ERRORS] += _errors(matrix, statistics)
    for table, rows in rows_of.items():
        rows.sort(key=_sort_key)
        columns = {c.name: [row[c.name] for row in rows] for c in table.columns}
        tables.write(folder, table, columns)


def _measured(
    checkpoint: Checkpoint, weights: Sequence[StoredWeight], threads: int
) -> Iterator[tuple[Matrix, WeightStatistics]]:
    """Yield every matrix with its statistics, in order; at most `threads + 1` are in progress."""
    pending: deque[tuple[Matrix, Future[WeightStatistics]]] = deque()
    with (
        progress(len(weights), " tensors", "measuring weights") as bar,
        # torch uses all cores in a new thread; the setting of the main thread does not apply.
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        for weight in weights:
            for matrix in checkpoint.matrices(weight):
                size = matrix.rows, matrix.columns
                pending.append((matrix, pool.submit(weight_statistics, *size, matrix.take)))
                if len(pending) > threads:
                    first, future = pending.popleft()
                    yield first, future.result()
            bar.update()
        yield from ((matrix, future.result()) for matrix, future in pending)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Let torch use a single thread inside the block.

    Each thread of the pool works on its own matrix. The last bits of sums depend on the number of
    torch's threads, and so do not depend on the size of the pool.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _identity(matrix: Matrix) -> Row:
    weight = matrix.weight
    return {"layer": weight.layer, "weight": weight.name, "expert": matrix.expert}


def _sort_key(row: Row) -> tuple[int, str, int, str, str]:
    """Return layer, name, expert, format and granularity; rows outside the layers come last."""
    layer, expert = row["layer"], row["expert"]
    return (
        sys.maxsize if layer is None else layer,
        row["weight"],
        -1 if expert is None else expert,
        row.get("format", ""),
        row.get("granularity", ""),
    )


def _row(matrix: Matrix, statistics: WeightStatistics) -> Row:
    return _identity(matrix) | {
        "kind": matrix.weight.kind,
        "site": matrix.weight.site,
        "dtype": matrix.dtype,
        "rows": matrix.rows,
        "columns": matrix.columns,
        "value": statistics.value,
        "row": statistics.row,
        "column": statistics.column,
        "mean": statistics.mean,
        "kurtosis": statistics.kurtosis,
        "not_finite": statistics.not_finite,
    }


def _errors(matrix: Matrix, statistics: WeightStatistics) -> Iterator[Row]:
    for (name, granularity), sums in statistics.errors.items():
        error = {"rmse": sums.rmse, "mae": sums.mae, "sqnr": sums.sqnr}
        identity = _identity(matrix) | {"dtype": matrix.dtype}
        yield identity | {"format": name, "granularity": granularity} | error


def _channels(matrix: Matrix, statistics: WeightStatistics) -> Row:
    return _identity(matrix) | {
        "site": matrix.weight.site,
        "input_maxima": statistics.input_maxima,
        "output_maxima": statistics.output_maxima,
    }
