"""A finished run in which a bit is flipped, and what the ordinary command does about it.

The stages run in this process: a stage runs where an output of it is missing or an earlier stage
has run, as Snakemake has it, and what a damage names is removed, as a rule's script does.
"""

import re
import shutil
from pathlib import Path

import gguf_files
from pipeline import Run, config
from times import has_times

from outlier_atlas.checkpoint.source import fetch
from outlier_atlas.extraction.run import extract
from outlier_atlas.files import DamagedFileError
from outlier_atlas.store.commits import Commit

ROWS = [[4 + (7 * i + 3 * k) % 55 for k in range(4 + 3 * (i % 3))] for i in range(8)]
EXEMPT = ("locks", ".lock", "logs", "digests", "architectures")


class Finished:
    """A run of a GGUF file with everything that is cheap: sites with and without their values,
    perplexity, two layer groups, sequence shards that share a chunk, ablation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "finished"
        self.folder.mkdir()
        model = gguf_files.write(folder / "m.gguf", "llama", gguf_files.model("llama"))
        self.config = config(
            model, ROWS, folder / "data",
            dataset={"sequences": 6},
            extraction={
                "sites": ["attn_in", "mlp_in", "resid_post"], "store": ["resid_post"],
                "layer_groups": 2, "sequence_shards": 2, "perplexity": True,
                "advanced": {"chunk_tokens": 16},
            },
            ablation={"sequences": 2, "targets": [], "random_draws": 0},
        )  # fmt: skip
        run = Run(self.folder, self.config)
        ordinary(run)
        self.files = contents(run)

    def copy(self, folder: Path) -> Run:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True, symlinks=True)
        return Run(folder, self.config)


def ordinary(run: Run) -> list[str]:
    """Run the stages that Snakemake would run; those that ran.

    Raises:
        ValueError: a stage refuses what it was given; what it names is gone.
    """
    ran: list[str] = []

    def stage(name, outputs, after, act):
        if set(after) & set(ran) or not all(path.exists() for path in outputs):
            for path in outputs:
                path.unlink(missing_ok=True)
            ran.append(name)
            try:
                act()
            except DamagedFileError as damage:
                damage.path.unlink(missing_ok=True)
                raise

    model = run.settings.model
    stage("fetch", [run.model_record], [], lambda: fetch(model, run.resources, run.model_record))
    stage("tokenize", [run.tokens, run.tokens_record], ["fetch"], run.tokenize)
    stage("hold out", [run.heldout, run.heldout_record], ["fetch"], run.hold_out)
    stage("store", [run.store_record], ["fetch", "tokenize"], run.create_store)
    before = ["store"]
    for group in range(run.settings.extraction.layer_groups):
        for shard in range(run.settings.extraction.sequence_shards):
            job = run.job(group, shard)
            stage(f"extract {group} {shard}", [job.manifest], before, lambda job=job: extract(job))
        before = [*before, *(name for name in ran if name.startswith("extract"))]
    tables = [run.tables / "layer_magnitudes.parquet"]
    stage("detect", tables, before, run.detect)
    stage("ablate", [run.tables / "ablations.parquet"], ["detect", "hold out"], run.take_away)
    return ran


def contents(run: Run) -> dict[str, bytes]:
    """What a run has left, but for what depends on time: by path."""
    root = run.folder.parents[1]
    return {
        str(path.relative_to(root)): path.read_bytes()
        for part in (run.folder, run.resources)
        for path in sorted(part.rglob("*"))
        if path.is_file() and not path.is_symlink() and not {*EXEMPT} & {*path.parts, path.name}
    }


def kind(path: str) -> str:
    """A path without what tells files of a kind apart."""
    name = re.sub(r"[0-9a-f]{16,}", "#", path)
    name = re.sub(r"summaries/[^/]*@[^/]*", "summaries/unstored", name)
    name = re.sub(r"models/[^/.]*-m.gguf-[0-9a-f]{8}", "models/m", name)
    return re.sub(r"\d+", "#", name)


def kinds(files: dict[str, bytes]) -> dict[str, list[str]]:
    """The files of a run by their kind."""
    found: dict[str, list[str]] = {}
    for path in files:
        found.setdefault(kind(path), []).append(path)
    return found


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    bit %= 8 * len(data)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def comparable(files: dict[str, bytes]) -> dict[str, bytes]:
    """Without times; of commits what they say, in any order of lines and files."""
    kept = {
        path: data
        for path, data in files.items()
        if not path.endswith(".jsonl") and not has_times(path)
    }
    commits = [
        (commit.rows, target, value)
        for path, data in files.items()
        if path.endswith(".jsonl")
        for commit in map(Commit.parse, data.decode().splitlines())
        for target, value in commit.checksums.items()
    ]
    return kept | {"commits": repr(sorted(commits)).encode()}
