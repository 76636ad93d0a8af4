"""Peak memory of extraction jobs on the CPU, against the plan.

    .venv/bin/python benchmarks/memory.py [--layers 20] [--threads 2] [--parts groups,tokens,...]

Each job is a process of its own. "Peak" is what nothing but the process holds (anonymous memory,
looked at every 20 ms) and the weights that stay in the memory map of their files. The synthetic
mixture of experts has random weights, about 200 MiB a layer in bfloat16, in a temporary folder.

groups   the first job of 1, 2, 3 and 6 layer groups, mixture and built-in model
tokens   one layer group over 8 to 80 thousand tokens
loading  what loading takes in addition to the weights, also of a float32 checkpoint
held     models on which no term of the plan was set: dense ones of three families, and a small
         mixture of another shape in float32 and float16
bounded  in a control group of a quarter of the checkpoint: one layer group is refused, many give
         the same bytes as one without a limit
"""

import argparse
import dataclasses
import hashlib
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np
import tiny
import torch
import transformers
from bounded import ControlGroup, run_job
from pipeline import Run, config
from real import MODEL, TEXT, built_in
from synthetic import mixture

from outlier_atlas.job_metrics import JobMetrics, records
from outlier_atlas.units import shown

PARTS = ("groups", "tokens", "loading", "held", "bounded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=20, help="of the mixture")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--folder", type=Path, help="for temporary files, 2.5 times the checkpoint")
    asked = parser.parse_args()
    print(f"{asked.threads} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        bench = Bench(Path(temporary), asked.layers, asked.threads)
        for part in asked.parts.split(","):
            print(f"\n{part}")
            getattr(bench, part)()


class Bench:
    def __init__(self, folder: Path, layers: int, threads: int) -> None:
        self.folder, self.layers, self.threads = folder, layers, threads
        self._mixture: Path | None = None

    @property
    def mixture(self) -> Path:
        if self._mixture is None:
            self._mixture = mixture(self.folder / "mixture", self.layers, 1024, 64)
        return self._mixture

    def groups(self) -> None:
        for count in (1, 2, 3, 6):
            self.show(f"mixture, {count} groups", self.job(self.run(self.mixture, 2, count)))
        built_in(ROOT / "resources")
        for count in (1, 2, 3, 6):
            dataset = {"source": TEXT, "sequences": 2, "sequence_length": 1024}
            settings = {"model": {"source": MODEL}, "dataset": dataset}
            settings["extraction"] = {"layer_groups": count}
            run = Run(self.folder / f"built-in-{count}", settings, ROOT / "resources")
            run.prepare()
            self.show(f"built-in, {count} groups", self.job(run))

    def tokens(self) -> None:
        small = mixture(self.folder / "small", 4, 256, 16)
        for sequences in (8, 24, 80):
            self.show(f"{sequences * 1024:,} tokens", self.job(self.run(small, sequences, 1)))

    def loading(self) -> None:
        sharp = mixture(self.folder / "float32", 4, 1024, 64, torch.float32)
        for name, folder in (("bfloat16", self.mixture), ("float32", sharp)):
            for dtype in ("bfloat16", "float32"):
                run = self.run(folder, 1, self.layers // 4 if folder == self.mixture else 1, dtype)
                self.show(f"{name} loaded as {dtype}", self.job(run))

    def held(self) -> None:
        sizes = {"num_hidden_layers": 12, "bos_token_id": 0, "eos_token_id": 1}
        heads = {"num_attention_heads": 16, "num_key_value_heads": 4}
        dense = {"hidden_size": 1536, "intermediate_size": 6144, "vocab_size": 50000, **heads}
        models = {
            "qwen2": transformers.Qwen2Config(**sizes, **dense),
            "gemma2": transformers.Gemma2Config(**sizes, **dense, head_dim=96),
            "gpt2": transformers.GPT2Config(n_embd=1280, n_head=20, n_layer=12),
        }
        for name, settings in models.items():
            folder = tiny.checkpoint(self.folder / name, settings, max_shard_size="200MB")
            for count in (1, 3):
                self.show(f"{name}, {count} groups", self.job(self.run(folder, 2, count)))
        other = mixture(self.folder / "other", 6, 512, 24)
        for dtype in ("float32", "float16"):
            self.show(f"mixture in {dtype}", self.job(self.run(other, 4, 1, dtype)))

    def bounded(self) -> None:
        size = sum(path.stat().st_size for path in self.mixture.glob("*.safetensors"))
        whole, many = self.run(self.mixture, 1, 1), self.run(self.mixture, 1, self.layers)
        with ControlGroup(size // 4) as group:
            print(f"checkpoint {shown(size)}, control group {shown(size // 4)}")
            refused = run_job(whole.job(0, 0), self.folder / "job.json", group)
            assert refused.returncode
            print(f"one layer group: {refused.stderr.splitlines()[-1]}")
            jobs = [self.job(many, index, group) for index in range(self.layers)]
        print(
            f"{self.layers} layer groups, largest job: {shown(max(job.host or 0 for job in jobs))}"
        )
        self.show("one layer group, no limit", self.job(whole))
        print("the same bytes" if digest(whole) == digest(many) else "OTHER BYTES")

    def run(self, model: Path, sequences: int, groups: int, dtype: str = "bfloat16") -> Run:
        random = np.random.default_rng(0)
        rows = [random.integers(2, 300, 1024).tolist() for _ in range(sequences)]
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        extraction = {"layer_groups": groups, "advanced": {"chunk_tokens": 1024}}
        settings = config(model, rows, folder / "data", extraction=extraction)
        settings["model"]["dtype"] = dtype
        run = Run(folder, settings)
        run.prepare()
        return run

    def job(self, run: Run, index: int = 0, group: ControlGroup | None = None) -> JobMetrics:
        job = dataclasses.replace(run.job(index, 0), threads=self.threads)
        done = run_job(job, self.folder / "job.json", group)
        if done.returncode:
            sys.exit(done.stderr)
        return records(run.folder)[index]

    def show(self, what: str, job: JobMetrics) -> None:
        assert job.host is not None
        print(
            f"{what:28}  weights {shown(job.weights):>9}  predicted {shown(job.predicted_host):>9}"
            f"  measured {shown(job.host):>9}  ratio {job.predicted_host / job.host:.3f}"
            f"  load {job.load_seconds:5.1f} s  compute {job.compute_seconds:6.1f} s",
            flush=True,
        )


def digest(run: Run) -> str:
    """Of all chunks of the activations, and of their names."""
    files = sorted(path for path in run.activations.rglob("c/**/*") if path.is_file())
    sums = hashlib.sha256()
    for path in files:
        sums.update(str(path.relative_to(run.activations)).encode() + path.read_bytes())
    return sums.hexdigest()


if __name__ == "__main__":
    main()
