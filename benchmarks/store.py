"""Writing and reading the store, against a raw write and against plain zarr-python.

    .venv/bin/python benchmarks/store.py [--pairs 10] [--tokens 2048] [--folder .]

A run of the built-in model on the built-in text: one site of all layers, two sequences. The forward
pass is in float32, which is fast on every CPU; its values are rounded to bfloat16 as they are
stored, so they compress as those of the demo do. Both sides of a pair take the same chunks.
"Bound" is the part that no reader or writer of these chunks can avoid, in as many threads.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
os.environ["TQDM_DISABLE"] = "1"

import numcodecs
import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from paired import measure
from pipeline import Run
from real import MODEL, TEXT, built_in

from outlier_atlas.devices.interface import OnHost
from outlier_atlas.extraction.float32 import Float32
from outlier_atlas.extraction.summaries import SummaryWriter
from outlier_atlas.extraction.work import Work
from outlier_atlas.extraction.writer import RowWriter
from outlier_atlas.plan.queue_limits import QUEUE_BYTES, THREADS
from outlier_atlas.store import shard_size
from outlier_atlas.store.chunks import encode
from outlier_atlas.store.commits import Commit, Rows
from outlier_atlas.store.layout import Target
from outlier_atlas.store.reader import Reader
from outlier_atlas.store.run import Run as StoredRun

SITE = "resid_post"
FASTER = 1 / 1.5
"""Goal of reading: 1.5 times as fast as zarr-python."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=2048, help="in each of two sequences")
    parser.add_argument("--folder", help="where the store is written, to measure another disk")
    asked = parser.parse_args()
    built_in(ROOT / "resources")
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        run = _run(Path(temporary), asked.tokens, "single")
        run.extract()
        values = run.array(SITE)
        _reading(run, asked.pairs)
        _writing(run.stored, values, asked.pairs, "")
        with mock.patch.object(shard_size, "MOST_FILES", 31):
            sharded = _run(Path(temporary), asked.tokens, "sharded")
        _writing(sharded.stored, values, asked.pairs, ", in shards")


def _run(folder: Path, tokens: int, name: str) -> Run:
    config = {
        "run": {"name": name},
        "model": {"source": MODEL, "dtype": "float32"},
        "dataset": {"source": TEXT, "sequences": 2, "sequence_length": tokens},
        "extraction": {"sites": [SITE]},
    }
    run = Run(folder, config, ROOT / "resources")
    run.prepare()
    convert = Float32.__call__
    rounded = lambda self, values: convert(self, values.to(torch.bfloat16))  # noqa: E731
    run.extract = lambda: _patched(rounded, Run.extract, run)  # type: ignore[method-assign]
    return run


def _patched(convert: Callable[..., Any], extract: Callable[[Run], None], run: Run) -> None:
    with mock.patch.object(Float32, "__call__", convert):
        extract(run)


def _reading(run: Run, pairs: int) -> None:
    array = zarr.open_group(run.activations, mode="r")[SITE]
    assert isinstance(array, zarr.Array)
    reader = Reader(run.folder)
    layers, tokens, channels = array.shape
    middle, channel = layers // 2, channels // 2
    chosen = np.sort(np.random.default_rng(0).choice(tokens, 512, replace=False))
    files = sorted((run.activations / SITE / "c").glob("*/*/0"))
    of_layer = [path for path in files if path.parts[-3] == str(middle)]
    print(f"{SITE}: {layers} layers, {tokens} tokens, {channels} channels, chunks {array.chunks}")
    for name, ours, plain, read in (
        ("one layer", lambda: reader.read(SITE, middle), lambda: array[middle], of_layer),
        (
            "one channel of all layers", lambda: reader.read(SITE, channels=channel),
            lambda: array[:, :, channel], files,
        ),
        (
            "512 random tokens of all layers", lambda: reader.read(SITE, tokens=chosen),
            lambda: array.oindex[:, chosen], files,
        ),
    ):  # fmt: skip
        assert np.array_equal(ours(), plain())
        measure(f"{name} / zarr", _side(ours), _side(plain), goal=FASTER, pairs=pairs)
        bound = _decoding(read, array.chunks)
        measure(f"{name} / bound (read, decode)", _side(ours), bound, pairs=pairs)


def _decoding(paths: list[Path], shape: tuple[int, ...]) -> Callable[[], None]:
    """Return a function that reads and decodes chunks, and keeps and checks nothing."""
    threads = len(os.sched_getaffinity(0))

    def some(index: int) -> None:
        values = np.empty(shape, np.float32)
        for path in paths[index::threads]:
            numcodecs.blosc.decompress(path.read_bytes()[:-4], values)

    def all_() -> None:
        with ThreadPoolExecutor(threads) as readers:
            list(readers.map(some, range(threads)))

    return all_


def _writing(run: StoredRun, values: NDArray[np.float32], pairs: int, form: str) -> None:
    work = Work.of(run, 0, 0)
    layers = [torch.from_numpy(layer).to(torch.bfloat16) for layer in values]
    size = run.layout.chunk_tokens
    pieces = [np.split(layer, len(layer) // size) for layer in values]
    chunks = [np.ascontiguousarray(piece) for of_layer in pieces for piece in of_layer]
    encoded = [encode(chunk, "lz4")[0] for chunk in chunks]
    raw = run.folder / "raw"

    def ours() -> None:
        _write(run, work, layers)

    def plain() -> None:
        with raw.open("wb", buffering=0) as file:
            for data in encoded:
                file.write(data)

    def encoding() -> None:
        with ThreadPoolExecutor(THREADS) as writers:
            list(writers.map(lambda chunk: encode(chunk, "lz4"), chunks))
        plain()

    total = sum(map(len, encoded))
    print(f"{len(chunks)} chunks, {total / 2**20:.0f} MiB encoded{form}")
    for name, other, goal in (
        ("raw write", plain, 1.3), ("bound (encode, raw write)", encoding, None),
    ):  # fmt: skip
        for synced in (False, True):
            measure(
                f"writing{form} / {name}{', to the disk' if synced else ''}",
                _timed(run, raw, ours, synced), _timed(run, raw, other, synced),
                goal=goal if synced else None, pairs=pairs,
            )  # fmt: skip


def _write(run: StoredRun, work: Work, layers: list[torch.Tensor]) -> None:
    arrays, commits = run.arrays(), run.commit_file("job")
    targets = frozenset(Target(SITE, layer) for layer in run.layout.layers)
    missing = dict.fromkeys(work.rows, targets)

    def commit(rows: Rows) -> None:
        sequences = work.fingerprints.sequences(rows.start, rows.stop)
        checksums = arrays.written(rows, targets)
        commits.append(Commit(rows, work.fingerprint(rows.chunk), checksums, sequences))

    with RowWriter(arrays, SummaryWriter(run, work), missing, commit, QUEUE_BYTES) as writer:
        for rows in work.rows:
            writer.next_batch()
            for layer, values in zip(run.layout.layers, layers, strict=True):
                part = values[rows.start : rows.stop]
                writer.put(Target(SITE, layer), rows.start, part, OnHost(part))
    run.put_shards_in_order((target, work.chunks) for target in sorted(targets))


def _timed(
    run: StoredRun, raw: Path, side: Callable[[], None], synced: bool
) -> Callable[[], float]:
    """Return a function that times a side, without the removal of what was written before."""
    folders = (run.activations / SITE / "c", run.commit_files)

    def seconds() -> float:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        raw.unlink(missing_ok=True)
        os.sync()
        started = time.perf_counter()
        side()
        if synced:
            os.sync()
        return time.perf_counter() - started

    return seconds


def _side(work: Callable[[], object]) -> Callable[[], None]:
    """Return a function whose call is timed."""

    def side() -> None:
        work()

    return side


if __name__ == "__main__":
    main()
