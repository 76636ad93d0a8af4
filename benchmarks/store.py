"""Writing and reading the store, against a raw write and against plain zarr-python.

    .venv/bin/python benchmarks/store.py [--pairs 10] [--tokens 2048] [--folder .] [--cpu]

A run of the built-in model on the built-in text: one site of all layers, two sequences. The forward
pass is in float32, which is fast on every CPU; its values are rounded to bfloat16 as they are
stored, so they compress as those of the demo do. Both sides of a pair take the same chunks.
"Bound" is the part that no reader or writer of these chunks can avoid, in as many threads. With
`--cpu`, CPU time is measured instead of time, for a machine that has other work.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
os.environ["TQDM_DISABLE"] = "1"

import numcodecs
import numpy as np
import paired
import torch
import zarr
from numpy.typing import NDArray
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

Clock = Callable[[], float]
Side = Callable[[], Callable[[], object]]
"""Prepares a call, and returns the function that is timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=2048, help="in each of two sequences")
    parser.add_argument("--folder", help="where the store is written, to measure another disk")
    parser.add_argument("--cpu", action="store_true", help="measure CPU time")
    asked = parser.parse_args()
    built_in(ROOT / "resources")
    measured = partial(
        measure, pairs=asked.pairs, clock=time.process_time if asked.cpu else time.perf_counter
    )
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        single = _prepared(Path(temporary), asked.tokens, "single")
        convert = Float32.__call__
        rounded = lambda self, values: convert(self, values.to(torch.bfloat16))  # noqa: E731
        with mock.patch.object(Float32, "__call__", rounded):
            single.extract()
        values = single.array(SITE)
        _reading(single, measured)
        _writing(single.stored, values, measured, "")
        with mock.patch.object(shard_size, "MOST_FILES", 31):
            sharded = _prepared(Path(temporary), asked.tokens, "sharded")
        _writing(sharded.stored, values, measured, ", in shards")


def measure(
    name: str, ours: Side, other: Side, goal: float | None, pairs: int, clock: Clock
) -> None:
    """Print the line of a ratio; a side returns a function to call before each timed call."""

    def timed(side: Side) -> Callable[[], float]:
        def seconds() -> float:
            work = side()
            started = clock()
            work()
            return clock() - started

        return seconds

    paired.measure(name, timed(ours), timed(other), goal=goal, pairs=pairs)


def _prepared(folder: Path, tokens: int, name: str) -> Run:
    config = {
        "run": {"name": name},
        "model": {"source": MODEL, "dtype": "float32"},
        "dataset": {"source": TEXT, "sequences": 2, "sequence_length": tokens},
        "extraction": {"sites": [SITE]},
    }
    run = Run(folder, config, ROOT / "resources")
    run.prepare()
    return run


def _reading(run: Run, measured: Callable[..., None]) -> None:
    array = zarr.open_group(run.activations, mode="r")[SITE]
    assert isinstance(array, zarr.Array)
    reader = Reader(run.folder)
    layers, tokens, channels = array.shape
    some, channel = range(0, layers, 3), channels // 2
    chosen = np.sort(np.random.default_rng(0).choice(tokens, 512, replace=False))
    files = sorted((run.activations / SITE / "c").glob("*/*/0"))
    of_some = [path for path in files if int(path.parts[-3]) in some]
    print(f"{SITE}: {layers} layers, {tokens} tokens, {channels} channels, chunks {array.chunks}")
    for name, ours, plain, paths in (
        (
            f"one layer ({len(some)} times)", lambda: [reader.read(SITE, layer) for layer in some],
            lambda: [array[layer] for layer in some], of_some,
        ),
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
        bound = _decoding(paths, array.chunks)
        measured(f"{name} / zarr", *(_again(each) for each in (ours, plain)), goal=FASTER)
        measured(f"{name} / bound", *(_again(each) for each in (ours, bound)), goal=None)


def _again(work: Callable[[], object]) -> Side:
    return lambda: work


def _decoding(paths: list[Path], shape: tuple[int, ...]) -> Callable[[], None]:
    """Return a function that reads and decodes chunks, and keeps and checks nothing."""
    threads = len(os.sched_getaffinity(0))

    def some(index: int) -> None:
        values = np.empty(shape, np.float32)
        for path in paths[index::threads]:
            numcodecs.blosc.decompress(path.read_bytes()[:-4], values)

    return lambda: _in_threads(threads, some)


def _in_threads(threads: int, work: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(threads) as workers:
        list(workers.map(work, range(threads)))


def _writing(
    run: StoredRun, values: NDArray[np.float32], measured: Callable[..., None], form: str
) -> None:
    work, raw = Work.of(run, 0, 0), run.folder / "raw"
    layers = [torch.from_numpy(layer).to(torch.bfloat16) for layer in values]
    pieces = [np.split(layer, len(layer) // run.layout.chunk_tokens) for layer in values]
    chunks = [np.ascontiguousarray(piece) for of_layer in pieces for piece in of_layer]
    encoded = [encode(chunk, "lz4")[0] for chunk in chunks]
    ends = np.cumsum([len(data) for data in encoded]).tolist()

    def plain() -> None:
        with raw.open("wb", buffering=0) as file:
            for data in encoded:
                file.write(data)

    def encoding() -> None:
        with raw.open("wb", buffering=0) as file:

            def some(index: int) -> None:
                for end, chunk in list(zip(ends, chunks, strict=True))[index::THREADS]:
                    data = encode(chunk, "lz4")[0]
                    os.pwrite(file.fileno(), data, end - len(data))

            _in_threads(THREADS, some)

    def clean(side: Callable[[], None]) -> Side:
        def prepare() -> Callable[[], None]:
            for folder in (run.activations / SITE / "c", run.commit_files):
                shutil.rmtree(folder, ignore_errors=True)
            raw.unlink(missing_ok=True)
            os.sync()
            return side

        return prepare

    def synced(side: Callable[[], None]) -> Callable[[], None]:
        def both() -> None:
            side()
            os.sync()

        return both

    def ours() -> None:
        _write(run, work, layers)

    print(f"{len(chunks)} chunks, {ends[-1] / 2**20:.0f} MiB encoded{form}")
    measured(f"writing{form} / raw write", clean(ours), clean(plain), goal=1.3)
    to_disk = [clean(synced(each)) for each in (ours, plain)]
    measured(f"writing{form} / raw write, to the disk", *to_disk, goal=1.3)
    measured(f"writing{form} / bound (encode, write)", clean(ours), clean(encoding), goal=None)


def _write(run: StoredRun, work: Work, layers: list[torch.Tensor]) -> None:
    """Write and commit all chunks as an extraction job does."""
    arrays, commits = run.arrays(), run.commit_file("job")
    targets = frozenset(Target(SITE, layer) for layer in run.layout.layers)
    missing = dict.fromkeys(work.rows, targets)

    def commit(rows: Rows) -> None:
        sequences = work.fingerprints.sequences(rows.start, rows.stop)
        checksums = arrays.written(rows, targets)
        commits.append(Commit(rows, work.fingerprint(rows.chunk), checksums, sequences))

    summaries, in_order = SummaryWriter(run, work), run.layout.shard_chunks > 1
    with RowWriter(arrays, summaries, missing, commit, QUEUE_BYTES, in_order=in_order) as writer:
        for rows in work.rows:
            writer.next_batch()
            for layer, values in zip(run.layout.layers, layers, strict=True):
                part = values[rows.start : rows.stop]
                writer.put(Target(SITE, layer), rows.start, part, OnHost(part))
    run.put_shards_in_order((target, work.chunks) for target in sorted(targets))


if __name__ == "__main__":
    main()
