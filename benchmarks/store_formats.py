"""Codecs and chunk shapes of the store: size, and CPU time to write and to read.

    .venv/bin/python benchmarks/store_formats.py [--tokens 1024] [--dtypes float32 bfloat16]

Activations of the built-in model on the built-in text, three sites of every sixth layer, in one
thread. Prints a table for each dtype of the forward pass; values are stored as float32 in both.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
os.environ["TQDM_DISABLE"] = "1"

import google_crc32c
import numcodecs
import numpy as np
from numpy.typing import NDArray
from pipeline import Run
from real import MODEL, TEXT, built_in

CODECS: dict[str, Any] = {
    name: numcodecs.Blosc(codec, level, shuffle, block * 2**10)
    for name, codec, level, shuffle, block in [
        ("lz4, level 5, bit shuffle (`lz4`)", "lz4", 5, 2, 0),
        ("lz4, level 1, bit shuffle", "lz4", 1, 2, 0),
        ("lz4, level 9, bit shuffle", "lz4", 9, 2, 0),
        ("lz4, level 5, bit shuffle, blocks of 32 KiB", "lz4", 5, 2, 32),
        ("lz4, level 5, byte shuffle", "lz4", 5, 1, 0),
        ("zstd, level 1, bit shuffle", "zstd", 1, 2, 0),
        ("zstd, level 1, bit shuffle, 512 KiB (`zstd`)", "zstd", 1, 2, 512),
        ("zstd, level 3, bit shuffle, 512 KiB", "zstd", 3, 2, 512),
        ("zstd, level 1, byte shuffle, 512 KiB", "zstd", 1, 1, 512),
    ]
} | {"Zstandard without Blosc (zarr's default)": numcodecs.Zstd(0), "none": None}
SHAPES = ("256 tokens", "1024 tokens", "2048 tokens", "8192 tokens", "half of the channels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024, help="a multiple of 1024 is quickest")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    asked = parser.parse_args()
    built_in(ROOT / "resources")
    numcodecs.blosc.use_threads = False
    for dtype in asked.dtypes:
        tokens = asked.tokens if dtype == "float32" else min(asked.tokens, 512)
        values = _activations(dtype, tokens)
        print(f"\n{dtype}: {len(values)} arrays of {tokens} tokens x {values[0].shape[1]} channels")
        print(f"{'codec':<45} {'bytes/value':>11} {'write':>8} {'read':>8}  (ms per 2^20 values)")
        for name, codec in CODECS.items():
            print(f"{name:<45} {_measured(codec, values)}")
        wide = np.concatenate([np.concatenate(values)] * 2)[:8192]
        print(f"\n{'chunk (lz4, level 5, bit shuffle)':<45} {'bytes/value':>11}")
        for shape in SHAPES:
            chunks = list(_chunks(wide, shape))
            print(f"{shape:<45} {_measured(CODECS[next(iter(CODECS))], chunks)}")


def _activations(dtype: str, tokens: int) -> list[NDArray[np.float32]]:
    with tempfile.TemporaryDirectory() as temporary:
        config = {
            "model": {"source": MODEL, "dtype": dtype},
            "dataset": {"source": TEXT, "sequences": 1, "sequence_length": tokens},
        }
        run = Run(Path(temporary), config, ROOT / "resources")
        run.prepare()
        run.extract()
        sites = run.settings.extraction.stored
        return [layer for site in sites for layer in run.array(site)[::6]]


def _chunks(values: NDArray[np.float32], shape: str) -> Iterator[NDArray[np.float32]]:
    if shape == "half of the channels":
        half = values.shape[1] // 2
        yield from (np.ascontiguousarray(values[:, :half]), np.ascontiguousarray(values[:, half:]))
        return
    yield from np.split(values, len(values) // int(shape.partition(" ")[0]))


def _measured(codec: Any, arrays: list[NDArray[np.float32]]) -> str:
    encoded = [_encode(codec, each) for each in arrays]
    count = sum(each.size for each in arrays)
    write = _cpu(lambda: [_encode(codec, each) for each in arrays])
    read = _cpu(lambda: [_decode(codec, data) for data in encoded])
    for data, each in zip(encoded, arrays, strict=True):
        assert np.array_equal(np.frombuffer(_decode(codec, data), np.float32), each.ravel())
    per_value = sum(map(len, encoded)) / count
    per_million = 2**20 / count * 1e3
    return f"{per_value:11.3f} {write * per_million:8.2f} {read * per_million:8.2f}"


def _encode(codec: Any, values: NDArray[np.float32]) -> bytes:
    data: bytes = values.tobytes() if codec is None else codec.encode(values)
    google_crc32c.value(bytes(data))
    return data


def _decode(codec: Any, data: bytes) -> Any:
    google_crc32c.value(bytes(data))
    return data if codec is None else codec.decode(data)


def _cpu(work: Callable[[], object], repeats: int = 5) -> float:
    """Return the least CPU seconds of a few calls."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


if __name__ == "__main__":
    main()
