"""Measurement of the memory and time of a job, recorded with its plan."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn

from outlier_atlas.devices.limits import resident
from outlier_atlas.devices.registry import named, of
from outlier_atlas.extraction.job import Job
from outlier_atlas.extraction.work import Work
from outlier_atlas.job_metrics import JobMetrics
from outlier_atlas.loading.partial import weight_bytes
from outlier_atlas.plan.requirements import Plan

INTERVAL_SECONDS = 0.02


class Measurement:
    """The memory and time of a job, measured in a `with` block.

    Args:
        job: the job.
        work: the work of the job.
        run_plan: the plan for the batch size of the job.
        where: devices of the job.
    """

    def __init__(self, job: Job, work: Work, run_plan: Plan, where: Sequence[str]) -> None:
        self.batch_size = job.batch_size
        self._job, self._work, self._plan, self._where = job, work, run_plan, where
        self._peak = PeakMemory()
        self._weights = self._mapped = 0
        self._loaded = self._ended = 0.0

    def __enter__(self) -> Measurement:
        self._started = time.monotonic()
        for device in self._where:
            named(device).reset_peak()
        self._peak.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._peak.__exit__()
        self._ended = time.monotonic()

    def loaded(self, modules: Sequence[nn.Module]) -> None:
        """Record that the weights are loaded."""
        self._loaded = time.monotonic()
        model = nn.ModuleList(modules)  # counts tied parameters once
        tensors = (*model.parameters(), *model.buffers())
        self._weights = weight_bytes(model)
        self._mapped = mapped((t.data_ptr(), t.nbytes) for t in tensors if of(t).is_host)

    def write(self, tokens: int) -> None:
        """Write the record.

        Args:
            tokens: number of tokens that were written.
        """
        job, group = self._job, self._plan.groups[self._job.group]
        device = named(self._where[0])
        alone = device.is_host
        JobMetrics(
            layer_group=job.group,
            sequence_shard=job.shard,
            layers=group.layers,
            model=self._plan.model,
            device=device.title,
            dtype=self._work.layout.dtype,
            threads=job.threads,
            batch_size=self.batch_size,
            tokens=tokens,
            weights=self._weights,
            load_seconds=self._loaded - self._started,
            compute_seconds=self._ended - self._loaded,
            predicted_host=group.host_alone if alone else group.host,
            predicted_device=0 if alone else group.device,
            host=None if self._peak.bytes is None else self._peak.bytes + self._mapped,
            on_device=_on_device(self._where),
        ).write(job.run.folder, job.manifest.stem)


def _on_device(where: Sequence[str]) -> int | None:
    """Return the highest peak memory of the devices; None if it is unknown."""
    peaks = [peak for name in where if (peak := named(name).peak()) is not None]
    return max(peaks, default=None)


class PeakMemory:
    """The peak host memory of the process in a `with` block.

    The kernel keeps no high-water mark of anonymous memory, so a thread samples every 20 ms.
    """

    def __init__(self) -> None:
        self.bytes: int | None = resident()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _watch(self) -> None:
        while self.bytes is not None:
            self.bytes = max(self.bytes, resident() or 0)
            if self._ends.wait(INTERVAL_SECONDS):
                return


def mapped(addresses: Iterable[tuple[int, int]]) -> int:
    """Return the number of bytes that are in memory maps of files.

    Args:
        addresses: first byte and number of bytes of each piece.
    """
    spans = []
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
    except OSError:
        return 0
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/"):
            first, _, last = fields[0].partition("-")
            spans.append((int(first, 16), int(last, 16)))
    return sum(
        size for start, size in addresses if any(first <= start < last for first, last in spans)
    )
