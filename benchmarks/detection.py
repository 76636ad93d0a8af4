"""Detection against the simplest single pass over the same store, and what each measure adds.

    .venv/bin/python benchmarks/detection.py [--pairs 10] [--tokens 2048]

The simplest pass is `abs().max()` of each chunk, read as detection reads them, in as many threads.
The store is that of the built-in model on the built-in text, in the default sites. Both run in
turn, in pairs (`paired.py`). A line each: with nothing kept, by the clock and in CPU time; without
what measures alone need; from the summaries alone, as after a changed threshold; and with the
quantization error of two of the three sites, as the demo is configured. Then milliseconds of CPU
time for a chunk of each part of a summary.

Everything is compiled before: the first detection of an installation takes some seconds more.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
os.environ["TQDM_DISABLE"] = "1"

import numba
import numpy as np
import torch
from paired import measure
from pipeline import Run
from real import MODEL, TEXT, built_in

from outlier_atlas.criteria.layer_measures.measure import LayerMeasures
from outlier_atlas.files import read_record
from outlier_atlas.statistics import compiled, quantization
from outlier_atlas.statistics.summary import TileRange, summarize
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.layout import Layout, Target

THREADS = 2
ROUNDED = ["attn_in", "mlp_in"]
MASSIVE = 100
GOAL = 2.0
NAN, NOT_FINITE = compiled.NAN, compiled.NOT_FINITE
FLOOR = np.float32(4.0).view(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=2048, help="in each of four sequences")
    asked = parser.parse_args()
    built_in(ROOT / "resources")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        run = _stored(Path(temporary), asked.tokens)
        simplest = _simplest(run)
        simplest(), run.detect()  # the first passes fill caches
        everything = "all criteria and measures over abs().max()"
        _pairs(everything, simplest, run, asked.pairs, goal=GOAL)
        _pairs(f"{everything}, CPU", simplest, run, asked.pairs, clock=time.process_time)
        with _without_measures():
            _pairs("criteria alone", simplest, run, asked.pairs)
        _pairs("another threshold", simplest, run, asked.pairs, kept=True)
        rounding = _run(Path(temporary), asked.tokens, quantization_error={"sites": ROUNDED})
        rounding.detect()  # compiles what is new
        _pairs("with quantization error of two sites", simplest, rounding, asked.pairs)
        _parts(run)


def _run(folder: Path, tokens: int, **detection: Any) -> Run:
    dataset = {"source": TEXT, "sequences": 4, "sequence_length": tokens}
    settings = {"model": {"source": MODEL}, "dataset": dataset, "detection": detection}
    return Run(folder, settings, ROOT / "resources")


def _stored(folder: Path, tokens: int) -> Run:
    run = _run(folder, tokens)
    run.prepare()
    run.extract()
    return run


def _arrays(run: Run, layout: Layout) -> Arrays:
    return run.stored.arrays()


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
            assert max(threads.map(largest, places)) > 0

    return once


def _put_aside(run: Run) -> None:
    """Nothing is kept for the next detection.

    To remove summaries is no part of it, and for a while makes every new file slow: ext4 does not
    use inodes again that have just been freed, and looks at one after the other.
    """
    aside = run.folder.parent / "aside"
    aside.mkdir(exist_ok=True)
    (run.folder / "summaries").rename(aside / str(len(list(aside.iterdir()))))


@contextmanager
def _without_measures() -> Iterator[None]:
    """Detection without what no criterion asks for: moments, kurtosis, norms, ratios, and the
    medians of tokens that have nothing massive."""
    lower_median, massive = compiled._lower_median, np.float32(MASSIVE).view(np.int32)

    @numba.njit
    def median_if_massive(a, codes, n, guess, gap, exact):
        return lower_median(a, codes, n, guess, gap, exact) if a.max() > massive else (NAN, 0, gap)

    with (
        _pass_with(_kurtosis=_no_kurtosis, _lower_median=median_if_massive, _powers=_no_powers),
        mock.patch.object(LayerMeasures, "update", lambda measures, summary: None),
    ):
        yield


@contextmanager
def _pass_with(**functions: Any) -> Iterator[None]:
    """The compiled pass with other functions in the place of its own."""
    with ExitStack() as stack:
        for name, function in functions.items():
            stack.enter_context(mock.patch.object(compiled, name, function))
        options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract"}}
        other = numba.njit(**options)(compiled._pass.py_func)
        _a_pass(np.ones((2, 2), np.float32), other)()  # compiles it
        stack.enter_context(mock.patch.object(compiled, "_pass", other))
        yield


@numba.njit
def _no_kurtosis(a, values, mean, n):
    return np.nan


@numba.njit
def _no_powers(x, mean, m2, m3, m4):
    pass


@numba.njit
def _no_median(a, codes, n, guess, gap, exact):
    return NAN, 0, gap


@numba.njit
def _no_count(a, codes, counts):
    """The codes alone, of which medians are found."""
    for c in range(len(a)):
        code = (a[c] + 0x3FFF + ((a[c] >> 15) & 1)) >> 15
        codes[c] = code if a[c] >= 0 else NOT_FINITE


@numba.njit
def _no_largest(a, row, largest, channel_row):
    pass


@numba.njit
def _no_high(a, least):
    return 0


@numba.njit
def _no_place(a):
    return 0


def _pairs(
    name: str,
    simplest: Callable[[], None],
    run: Run,
    pairs: int,
    goal: float | None = None,
    kept: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    def seconds(work: Callable[[], None]) -> float:
        started = clock()
        work()
        return clock() - started

    def detection() -> float:
        if not kept:
            _put_aside(run)
        return seconds(run.detect_outliers)

    measure(name, detection, lambda: seconds(simplest), goal=goal, pairs=pairs)


def _parts(run: Run) -> None:
    """What a summary takes on one chunk, and how much less it takes without each of its parts."""
    layout = Layout.from_record(read_record(run.store_record))
    arrays, target = _arrays(run, layout), Target("mlp_in", layout.layers[-1])
    stop = layout.chunk_range(0)[1]
    values = arrays.read(target, 0, stop)
    x, place = torch.from_numpy(values), TileRange(0, 0, stop)
    parts = {
        "histogram (medians, quantiles)": {"_count": _no_count},
        "largest by token": {"_first_of_largest": _no_place},
        "largest by channel": {"_take_largest": _no_largest},
        "kurtosis by token": {"_kurtosis": _no_kurtosis},
        "moments by channel (kurtosis)": {"_powers": _no_powers},
        "medians by token (massive, MMR)": {"_lower_median": _no_median},
        "exceedances (LLM.int8(), massive)": {"_count_high": _no_high},
    }
    print(f"CPU milliseconds for a chunk of {stop} x {x.shape[1]}, one thread:")
    _show("read", lambda: arrays.read(target, 0, stop))
    _show("abs().max()", lambda: x.abs().max())
    _show("whole summary", lambda: summarize(x, place, 4.0))
    whole = _show("of it: the compiled pass", _a_pass(values))
    for name, without in parts.items():
        with _pass_with(**without):
            print(f"{f'  of it: {name}':45s} {whole - _milliseconds(_a_pass(values)):7.2f}")
    _show(
        "quantization error, 7 formats",
        lambda: quantization.summarize_quantization(x, place, 6.0),
    )


def _a_pass(x, compiled_pass=None):
    """The compiled pass alone, whose arrays are made before."""
    arrays = compiled._Codes.of(x), compiled._Tokens.of(x), compiled._Channels.of(x)
    top = np.full(compiled.TOP, compiled.NONE)
    return lambda: (compiled_pass or compiled._pass)(x, FLOOR, *arrays, top)


def _show(name: str, part) -> float:
    milliseconds = _milliseconds(part)
    print(f"{name:45s} {milliseconds:7.2f}")
    return milliseconds


def _milliseconds(part) -> float:
    """The least of some: what comes on top is the machine's."""
    part()
    times = []
    for _ in range(25):
        started = time.process_time()
        part()
        times.append(time.process_time() - started)
    return min(times) * 1e3


if __name__ == "__main__":
    main()
