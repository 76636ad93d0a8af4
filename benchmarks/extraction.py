"""Extraction against the bare forward pass of the same tokens, paired and interleaved.

    .venv/bin/python benchmarks/extraction.py [--pairs 5] [--tokens 1024] [--threads 2]

The built-in model on the built-in text, one layer group, the three sites of the demo, in bfloat16.
Both sides run the same sequences one by one; loading is left out of both. "Bare" is the decoder
stack without `lm_head`, as extraction runs it. Prints each pair, and the median of their ratios.
"""

import argparse
import dataclasses
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
from pipeline import Run
from real import MODEL, TEXT, built_in

from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.extraction.run import load
from outlier_atlas.extraction.stream import stream
from outlier_atlas.extraction.work import Work
from outlier_atlas.files import read_record
from outlier_atlas.model.architecture import describe
from outlier_atlas.model.partial import load_layers
from outlier_atlas.model.source import load_config
from outlier_atlas.store.commits import COMMITS, Commits
from outlier_atlas.store.layout import Layout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=1024, help="in each of two sequences")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    model = built_in(ROOT / "resources")
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as temporary:
        run = _prepared(Path(temporary), asked.tokens)
        ratios = []
        forward, extraction = _bare(run, model), _extraction(run, asked.threads)
        forward()  # the first passes fill caches
        print(f"2 x {asked.tokens} tokens, {asked.threads} threads, torch {torch.__version__}")
        for pair in range(asked.pairs):
            both = [(forward, 0), (extraction, 1)]
            seconds = [0.0, 0.0]
            for side, index in both if pair % 2 else reversed(both):
                seconds[index] = side()
            ratios.append(seconds[1] / seconds[0])
            print(f"bare {seconds[0]:7.2f} s   extraction {seconds[1]:7.2f} s   {ratios[-1]:.3f}")
    print(f"median ratio {statistics.median(ratios):.3f}")


def _prepared(folder: Path, tokens: int) -> Run:
    dataset = {"source": TEXT, "sequences": 2, "sequence_length": tokens}
    run = Run(folder, {"model": {"source": MODEL}, "dataset": dataset}, ROOT / "resources")
    run.prepare()
    return run


def _bare(run: Run, folder: Path):
    config = load_config(folder)
    architecture = describe(config)
    model = load_layers(folder, config, architecture, range(architecture.layers), "bfloat16")
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
    layout = Layout.from_record(read_record(run.store_record))
    fingerprint = str(read_record(run.model_record)["fingerprint"])
    work = Work(layout, TokenStore.open(run.tokens), fingerprint, 0, 0)
    missing = work.missing(Commits.load(run.folder / COMMITS), job.batch_size)
    group = load(job, work, missing, "cpu")

    def seconds() -> float:
        shutil.rmtree(run.folder / COMMITS, ignore_errors=True)
        started = time.perf_counter()
        stream(job, work, missing, group, "cpu")
        return time.perf_counter() - started

    return seconds


if __name__ == "__main__":
    main()
