"""Memory and time that extraction jobs took, recorded with what the plan predicted.

The records lie in a folder of their own. They hold times and names of machines, so they are no
manifests: nothing depends on them, and a job that finds nothing to do leaves them as they are.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from outlier_atlas.files import read_record, write_record

MEASURED = "measured"
"""Folder of the records, seen from the run's folder."""


@dataclass(frozen=True)
class Measured:
    """What one extraction job took, and what was predicted.

    Attributes:
        layer_group, sequence_shard: numbers of the job.
        layers: first and last.
        model: class of the model.
        device: its name, or `cpu`.
        dtype: of the forward pass.
        threads: CPU threads.
        batch_size: sequences in a forward pass, at the end.
        tokens: that were run.
        weights: bytes in memory.
        load_seconds, compute_seconds: of loading, and of everything after it.
        predicted_host, predicted_device: bytes at the peak, by the plan; 0 for a device that is
            not.
        host: peak of the memory that nothing but the process holds, and of weights that stay in the
            memory map of their files; None where the system does not say.
        on_device: peak that torch had allocated there; None on the CPU.
    """

    layer_group: int
    sequence_shard: int
    layers: tuple[int, int]
    model: str
    device: str
    dtype: str
    threads: int
    batch_size: int
    tokens: int
    weights: int
    load_seconds: float
    compute_seconds: float
    predicted_host: int
    predicted_device: int
    host: int | None
    on_device: int | None

    def write(self, run: Path, job: str) -> None:
        """Leave the record of a job."""
        write_record(run / MEASURED / f"{job}.json", asdict(self))

    @property
    def rate(self) -> float:
        """Bytes of weights times tokens, in a second."""
        return self.weights * self.tokens / self.compute_seconds


def records(run: Path) -> list[Measured]:
    """The records of a run, in the order of layer groups; one that cannot be read is left out."""
    found = []
    for path in sorted((run / MEASURED).glob("*.json")):
        try:
            found.append(Measured(**read_record(path)))
        except (ValueError, TypeError, OSError):
            continue
    return sorted(found, key=lambda r: (r.layer_group, r.sequence_shard))


def keep_only(run: Path, jobs: Collection[str]) -> None:
    """Remove the records of jobs that a run was once divided into, where it has newer ones.

    Args:
        jobs: those that it is divided into now.
    """
    there = {path.stem: path for path in (run / MEASURED).glob("*.json")}
    if not there.keys().isdisjoint(jobs):
        for job in there.keys() - set(jobs):
            there[job].unlink()


@dataclass(frozen=True)
class Rates:
    """How fast jobs on a device were.

    Attributes:
        weights_times_tokens: bytes of weights times tokens, in a second of computing.
        bytes_loaded: of weights, in a second.
        source: where they come from, in words.
    """

    weights_times_tokens: float
    bytes_loaded: float
    source: str


GUESSED = {"cpu": Rates(1e11, 0.5e9, "a guess"), "device": Rates(2e13, 1e9, "a guess")}
"""Of no machine in particular: a CPU of few cores, and a GPU that is kept half busy."""


def rates(results: Path, model: str, device: str) -> Rates:
    """The rates of earlier jobs on a device; of the same class of model where there are any.

    Args:
        results: folder of all runs.
        model: class of the model.
        device: its name, or `cpu`.
    """
    jobs = [r for run in sorted(results.glob("*/")) for r in records(run) if r.device == device]
    same = [job for job in jobs if job.model == model]
    used = same or jobs
    if not used:
        guess = GUESSED["cpu" if device == "cpu" else "device"]
        return Rates(
            guess.weights_times_tokens, guess.bytes_loaded,
            f"a guess: no earlier run on {device} here",
        )  # fmt: skip
    where = model if same else "other models"
    noun = "job" if len(used) == 1 else "jobs"
    return Rates(
        statistics.median(job.rate for job in used),
        statistics.median(job.weights / max(job.load_seconds, 1e-3) for job in used),
        f"from {len(used)} measured {noun} of {where} on {device}",
    )
