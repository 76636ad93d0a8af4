"""Detection against the simplest single pass over the same store, and what each measure adds.

    .venv/bin/python benchmarks/detection.py [--pairs 7] [--tokens 2048]

The simplest pass is `abs().max()` of each chunk, one after the other, read as detection reads them.
Both have the same threads: the simplest pass takes chunks side by side as detection does. The store
is that of the built-in model on the built-in text, in the demo's sites. Both run in turn, in pairs.
Prints each pair and the median of their ratios, by the clock and in CPU time: with nothing kept,
the same without what measures alone need, and from the summaries alone, as after a changed
threshold. Then milliseconds of CPU time for a chunk of each part of a summary.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
from pipeline import Run
from real import MODEL, TEXT, built_in

from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.files import read_record
from outlier_atlas.statistics import compiled, quantization
from outlier_atlas.statistics.summary import Place, summarize
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.commits import COMMITS, Commits
from outlier_atlas.store.fingerprints import Fingerprints
from outlier_atlas.store.layout import Layout, Target

THREADS = 2
MASSIVE = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=2048, help="in each of two sequences")
    asked = parser.parse_args()
    built_in(ROOT / "resources")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        run = _stored(Path(temporary), asked.tokens)
        simplest, detection, again = _simplest(run), _detection(run), run.detect
        simplest(), detection()  # the first passes fill caches
        _pairs("criteria and measures", simplest, detection, asked.pairs)
        with _without_measures():
            _pairs("criteria alone", simplest, detection, asked.pairs)
        _pairs("another threshold", simplest, again, asked.pairs)
        _parts(run)


def _stored(folder: Path, tokens: int) -> Run:
    dataset = {"source": TEXT, "sequences": 2, "sequence_length": tokens}
    run = Run(folder, {"model": {"source": MODEL}, "dataset": dataset}, ROOT / "resources")
    run.prepare()
    run.extract()
    return run


def _arrays(run: Run, layout: Layout) -> Arrays:
    tokens, model = TokenStore.open(run.tokens), str(read_record(run.model_record)["fingerprint"])
    fingerprints = Fingerprints(layout, tokens.token_ids, tokens.sequence_starts, model)
    return Arrays(run.folder, layout, fingerprints.counted(Commits.load(run.folder / COMMITS)))


def _simplest(run: Run):
    layout = Layout.from_record(read_record(run.store_record))
    places = [
        (Target(site, layer), layout.chunk_range(chunk))
        for chunk in range(layout.chunks)
        for site in layout.sites
        for layer in layout.layers
    ]

    def once() -> None:
        arrays = _arrays(run, layout)

        def largest(place) -> float:
            target, (start, stop) = place
            return float(torch.from_numpy(arrays.read(target, start, stop)).abs().max())

        with ThreadPoolExecutor(THREADS) as threads:
            print(end=f"{max(threads.map(largest, places)):.0f}\r")

    return once


def _detection(run: Run):
    def once() -> None:
        shutil.rmtree(run.folder / "summaries", ignore_errors=True)
        run.detect()

    return once


@contextmanager
def _without_measures() -> Iterator[None]:
    """Summaries without what no criterion asks for: moments, kurtosis, norms, and the medians of
    tokens that have nothing massive."""
    lower_medians = blocks._lower_medians

    def token_moments(block, doubles, work):
        return np.zeros(len(block.x)), np.full(len(block.x), np.nan)

    def channel_powers(block, doubles, work, more_work):
        return tuple(np.zeros((5, block.x.shape[1])))

    def medians(a, codes, finite):
        result = np.full(len(a), np.nan, np.float32)
        some = np.flatnonzero(a.amax(1).numpy() > MASSIVE)
        result[some] = lower_medians(a[some], codes[some], None if finite is None else finite[some])
        return result

    with (
        mock.patch.object(blocks, "_token_moments", token_moments),
        mock.patch.object(blocks, "_channel_powers", channel_powers),
        mock.patch.object(blocks, "_lower_medians", medians),
    ):
        yield


def _seconds(work) -> tuple[float, float]:
    started, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - cpu


def _pairs(name: str, simplest, other, pairs: int) -> None:
    ratios = []
    for pair in range(pairs):
        order = [(simplest, 0), (other, 1)]
        took = [(0.0, 0.0), (0.0, 0.0)]
        for work, index in order if pair % 2 else reversed(order):
            took[index] = _seconds(work)
        ratios.append([b / a for a, b in zip(*took, strict=True)])
        print(
            f"simplest {took[0][0]:6.2f} s   {name} {took[1][0]:6.2f} s   "
            f"{ratios[-1][0]:.2f} by the clock, {ratios[-1][1]:.2f} in CPU time"
        )
    for kind, column in zip(
        ("by the clock", "in CPU time"), zip(*ratios, strict=True), strict=True
    ):
        spread = f"({min(column):.2f} to {max(column):.2f})"
        print(f"{name}, {kind}: median ratio {statistics.median(column):.2f} {spread}")
    print()


def _parts(run: Run) -> None:
    """What the parts of a summary take, on one chunk."""
    layout = Layout.from_record(read_record(run.store_record))
    arrays, target = _arrays(run, layout), Target("mlp_in", layout.layers[-1])
    stop = layout.chunk_range(0)[1]
    x = torch.from_numpy(arrays.read(target, 0, stop))
    place, work, whole = Place(0, 0, stop), blocks.work_of(x), blocks.Values.of(x)
    code = x.abs().bfloat16()
    looked = [
        (block, code[part], block.magnitudes(), work[:, : len(block.x)])
        for part, block in whole.blocks()
    ]

    def each(part):
        return lambda: [part(*of_block) for of_block in looked]

    parts = {
        "read": lambda: arrays.read(target, 0, stop),
        "abs().max()": lambda: x.abs().max(),
        "whole summary": lambda: summarize(x, place, 4.0),
        "of it: histogram (medians, quantiles)": lambda: summary._histogram(code, None),
        "of it: largest by token": each(
            lambda b, c, a, w: b.at(torch.from_numpy(a.numpy().argmax(1)), 1)
        ),
        "of it: exceedances (LLM.int8(), massive)": each(
            lambda b, c, a, w: blocks._exceedances(b.x, a, a.amax(1).numpy(), 4.0)
        ),
        "of it: sum of magnitudes (systematic)": each(
            lambda b, c, a, w: b.double(w[0]).abs_().sum(1).sum()
        ),
        "of it: moments by channel (kurtosis)": each(
            lambda b, c, a, w: blocks._channel_powers(b, b.double(w[0]), w[1], w[2])
        ),
        "of it: kurtosis and norm by token": each(
            lambda b, c, a, w: blocks._token_moments(b, b.double(w[0]), w[1])
        ),
        "of it: medians by token (MMR)": each(lambda b, c, a, w: blocks._lower_medians(a, c, None)),
        "quantization error, 7 formats": lambda: quantization.summarize_quantization(x, place, 6.0),
    }
    print(f"CPU milliseconds for a chunk of {stop} x {x.shape[1]}, one thread:")
    for name, part in parts.items():
        part()
        started = time.process_time()
        for _ in range(5):
            part()
        print(f"{name:45s} {(time.process_time() - started) / 5 * 1e3:7.2f}")


if __name__ == "__main__":
    main()
