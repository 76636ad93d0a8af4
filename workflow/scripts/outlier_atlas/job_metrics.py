"""Memory and time of extraction jobs, recorded with the predictions of the plan.

The records have a separate folder. They contain times and names of machines, so they are not
manifests: nothing depends on them, and a job without work leaves them unchanged.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from outlier_atlas.files import read_record, write_record

FOLDER = "measured"
"""Folder of the records, relative to the run's folder."""


@dataclass(frozen=True)
class JobMetrics:
    """Memory and time of one extraction job, measured and predicted.

    Attributes:
        layer_group, sequence_shard: indices of the job.
        layers: first and last layer.
        model: class of the model.
        device: name of the device, or `cpu`.
        dtype: data type of the forward pass.
        threads: number of CPU threads.
        batch_size: sequences in a forward pass at the end of the job.
        tokens: number of tokens that were run.
        weights: bytes of the weights in memory.
        load_seconds, compute_seconds: seconds of loading, and of everything after it.
        predicted_host, predicted_device: peak memory in bytes by the plan; 0 if there is no device.
        host: measured peak in bytes of the process's private memory and of weights in the memory
            map of their files; None if the system does not report it.
        on_device: measured peak in bytes of torch's allocations on the device; None on the CPU.
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
        """Write the record of a job."""
        write_record(run / FOLDER / f"{job}.json", asdict(self))


def records(run: Path) -> list[JobMetrics]:
    """Return the readable records of a run, in the order of layer groups."""
    readable = []
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            readable.append(JobMetrics(**read_record(path)))
        except (ValueError, TypeError, OSError):
            continue
    return sorted(readable, key=lambda r: (r.layer_group, r.sequence_shard))


def keep_only(run: Path, jobs: Collection[str]) -> None:
    """Remove the records of jobs of an earlier division of a run, if there are current records.

    Args:
        run: folder of the run.
        jobs: names of the jobs that the run is divided into now.
    """
    paths = {path.stem: path for path in (run / FOLDER).glob("*.json")}
    if not paths.keys().isdisjoint(jobs):
        for job in paths.keys() - set(jobs):
            paths[job].unlink()
