"""Extraction against the bare forward pass of the same tokens, and what it reads and computes.

    .venv/bin/python benchmarks/extraction.py [--pairs 10] [--tokens 2048] [--parts two,three]

The built-in model on the built-in text. Seconds: one layer group; both sides run the same sequences
in the same batches, in turn, loading left out of both. "Bare" is the decoder stack without
`lm_head`, as extraction runs it.

two, three, twelve   so many sites written to Zarr; two are those of the LLM.int8() criterion, three
                     the default sites
unstored             the default sites with `store: []`: only summaries are written
counts               the demo's three layer groups and two sequence shards, counted where
                     transformers reads a weight and where a decoder layer runs

Without `--dtype`, it is bfloat16 if the CPU has instructions for it, and otherwise float32.
"""

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
from paired import fast_dtype, measure
from pipeline import Run
from real import MODEL, TEXT, built_in
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import core_model_loading

from outlier_atlas.checkpoint.folder import headers, weight_files
from outlier_atlas.checkpoint.source import load_config
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.extraction.compute import load
from outlier_atlas.extraction.stream import stream
from outlier_atlas.extraction.work import Work
from outlier_atlas.files import read_record
from outlier_atlas.loading.partial import load_layers
from outlier_atlas.roles.architecture import describe
from outlier_atlas.store.layout import Layout

TWO = ["attn_in", "mlp_in"]
THREE = [*TWO, "resid_post"]
TWELVE = [
    *THREE, "resid_pre", "resid_mid", "attn_hidden", "attn_out", "q", "k", "v", "mlp_hidden",
    "mlp_out",
]  # fmt: skip
PARTS = {
    "two": ("two sites stored", {"sites": TWO}, 1.03),
    "three": ("three sites stored", {"sites": THREE}, 1.04),
    "twelve": ("twelve sites stored", {"sites": TWELVE}, 1.25),
    "unstored": ("three sites, store: []", {"sites": THREE, "store": []}, 1.05),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=2048, help="in each of two sequences")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--parts", default=",".join([*PARTS, "counts"]))
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default=fast_dtype())
    asked = parser.parse_args()
    model = built_in(ROOT / "resources")
    torch.set_num_threads(asked.threads)
    print(
        f"2 x {asked.tokens} tokens, {asked.dtype}, {asked.threads} threads, "
        f"torch {torch.__version__}"
    )
    for part in asked.parts.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            if part == "counts":
                cut = {"layer_groups": 3, "sequence_shards": 2}
                _counts(_prepared(Path(temporary), 64, cut, "bfloat16"), model)
                continue
            what, extraction, goal = PARTS[part]
            run = _prepared(Path(temporary), asked.tokens, extraction, asked.dtype)
            forward, extract = _bare(run, model, asked.dtype), _extraction(run, asked.threads)
            forward()  # the first passes fill caches
            extract()
            measure(f"{what} / bare forward pass", extract, forward, goal=goal, pairs=asked.pairs)


def _prepared(folder: Path, tokens: int, extraction: dict, dtype: str) -> Run:
    dataset = {"source": TEXT, "sequences": 2, "sequence_length": tokens}
    settings = {"source": MODEL, "dtype": dtype}
    config = {"model": settings, "dataset": dataset, "extraction": extraction}
    run = Run(folder, config, ROOT / "resources")
    run.prepare()
    return run


def _bare(run: Run, folder: Path, dtype: str):
    config = load_config(folder)
    architecture = describe(config)
    model = load_layers(folder, config, architecture, range(architecture.layers), dtype)
    model.norm = torch.nn.Identity()  # extraction stops after the last block
    tokens = TokenStore.open(run.tokens)
    rows = [torch.from_numpy(tokens.sequence(i).astype(np.int64))[None] for i in range(2)]

    def seconds() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            for row in rows:
                model(input_ids=row, use_cache=False)
        return time.perf_counter() - started

    return seconds


def _extraction(run: Run, threads: int):
    job = dataclasses.replace(run.job(0, 0), threads=threads)
    work = Work.of(job.run, 0, 0)
    missing = work.missing(job.run.commits(), job.batch_size)
    group = load(job, work, missing, ["cpu"])

    def seconds() -> float:
        for made in (job.run.commit_files, job.run.folder / "summaries"):
            shutil.rmtree(made, ignore_errors=True)
        started = time.perf_counter()
        stream(job, work, missing, group, "cpu")
        return time.perf_counter() - started

    return seconds


def _counts(run: Run, folder: Path) -> None:
    extraction = run.settings.extraction
    with _counted_bytes() as read, _counted_layers() as computed:
        run.extract()
    layers = Layout.from_record(read_record(run.store_record)).layers
    held = headers(folder, weight_files(folder))
    there = sum(stop - start for start, stop in (each["data_offsets"] for _, each in held))
    shards, sequences = extraction.sequence_shards, run.settings.dataset.sequences
    print(f"{extraction.layer_groups} layer groups, {shards} sequence shards:")
    print(
        f"weight bytes read / checkpoint bytes, per sequence shard: "
        f"{sum(read):,} / {shards} / {there:,} = {sum(read) / shards / there:.4f}"
    )
    print(
        f"layers computed / layers, per sequence: {sum(computed)} / {sequences} / {len(layers)} = "
        f"{sum(computed) / sequences / len(layers):.4f}"
    )


@contextmanager
def _counted_bytes() -> Iterator[list[int]]:
    """Bytes of every tensor as transformers takes it out of a file."""
    read: list[int] = []
    materialize = core_model_loading._materialize_copy

    def counting(tensor, *args, **kwargs):
        whole = tensor[...]
        read.append(whole.nbytes)
        return materialize(whole, *args, **kwargs)

    with mock.patch.object(core_model_loading, "_materialize_copy", counting):
        yield read


@contextmanager
def _counted_layers() -> Iterator[list[int]]:
    """The sequences of every call of a decoder layer."""
    computed: list[int] = []

    # Before and not after: the trace stops within the last layer that is wanted.
    def count(module, args):
        if type(module).__name__.endswith("DecoderLayer"):
            hidden = args[0]
            if not hidden.is_meta:  # the plan's, which computes nothing
                computed.append(len(hidden))

    handle = register_module_forward_pre_hook(count)
    try:
        yield computed
    finally:
        handle.remove()


if __name__ == "__main__":
    main()
