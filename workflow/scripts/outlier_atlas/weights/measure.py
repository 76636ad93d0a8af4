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
from outlier_atlas.progress import progress
from outlier_atlas.roles.cached_architecture import described
from outlier_atlas.roles.decoder_weights import StoredWeight, stored_weights
from outlier_atlas.statistics.weights import WeightStatistics, weight_statistics

Row = dict[str, Any]


def measure(
    model_record: Path, resources: Path, trust_remote_code: bool, folder: Path, threads: int
) -> None:
    """Measure the weights of a recorded model and write what is found as Parquet and CSV.

    Memory is some rows of a matrix for each thread and what is found, however large the model is.

    Args:
        folder: for `weights`, `weight_errors` and `weight_channels`.
        threads: matrices that are worked on at a time.

    Raises:
        ValueError: the model is not there any more, or a weight is quantized in a way that cannot
            be undone.
    """
    CheckedWeights(model_record, resources).check()
    record = read_record(model_record)
    source, config, architecture = described(record, resources, trust_remote_code)
    files = record["files"]
    weights = stored_weights(source, files, config, architecture, trust_remote_code)
    found: dict[tables.Table, list[Row]] = {tables.WEIGHTS: [], tables.WEIGHT_ERRORS: []}
    with (
        Checkpoint(source, files, config) as checkpoint,
        tables.streaming(folder, tables.WEIGHT_CHANNELS) as write_channels,
        _one_thread_each(),
    ):
        for matrix, statistics in _measured(checkpoint, weights, threads):
            write_channels(_channels(matrix, statistics))
            found[tables.WEIGHTS].append(_row(matrix, statistics))
            found[tables.WEIGHT_ERRORS] += _errors(matrix, statistics)
    for table, rows in found.items():
        rows.sort(key=_place)
        columns = {c.name: [row[c.name] for row in rows] for c in table.columns}
        tables.write(folder, table, columns)


def _measured(
    checkpoint: Checkpoint, weights: Sequence[StoredWeight], threads: int
) -> Iterator[tuple[Matrix, WeightStatistics]]:
    """Every matrix with its statistics, in order; a few are under way at a time."""
    under_way: deque[tuple[Matrix, Future[WeightStatistics]]] = deque()
    with (
        progress(len(weights), " tensors", "measuring weights") as bar,
        # A new thread would take as many as there are cores, whatever was set before it began.
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        for weight in weights:
            for matrix in checkpoint.matrices(weight):
                size = matrix.rows, matrix.columns
                under_way.append((matrix, pool.submit(weight_statistics, *size, matrix.take)))
                if len(under_way) > threads:
                    first, future = under_way.popleft()
                    yield first, future.result()
            bar.update()
        yield from ((matrix, future.result()) for matrix, future in under_way)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """While the block lasts, torch takes no threads of its own: ours have matrices of their own,
    and sums, whose last bits depend on torch's threads, come out the same with any number of ours.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _which(matrix: Matrix) -> Row:
    weight = matrix.weight
    return {"layer": weight.layer, "weight": weight.name, "expert": matrix.expert}


def _place(row: Row) -> tuple[int, str, int, str, str]:
    """In layers first, by layer; then by name, expert and format."""
    layer, expert = row["layer"], row["expert"]
    return (
        sys.maxsize if layer is None else layer,
        row["weight"],
        -1 if expert is None else expert,
        row.get("format", ""),
        row.get("granularity", ""),
    )


def _row(matrix: Matrix, statistics: WeightStatistics) -> Row:
    return _which(matrix) | {
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
        which = _which(matrix) | {"dtype": matrix.dtype}
        yield which | {"format": name, "granularity": granularity} | error


def _channels(matrix: Matrix, statistics: WeightStatistics) -> Row:
    return _which(matrix) | {
        "site": matrix.weight.site,
        "input_maxima": statistics.input_maxima,
        "output_maxima": statistics.output_maxima,
    }
