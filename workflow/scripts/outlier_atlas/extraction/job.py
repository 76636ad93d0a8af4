"""The arguments of an extraction job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from outlier_atlas.settings.configuration import OnNewVersions
from outlier_atlas.settings.extraction import Verify
from outlier_atlas.store.run import Run


@dataclass(frozen=True)
class Job:
    """The arguments of an extraction job.

    Attributes:
        run: the run.
        group: the number of the layer group, 0-based.
        shard: the number of the sequence shard, 0-based.
        manifest: the record to leave when everything is committed.
        trust_remote_code: whether code from the checkpoint may run.
        device: `auto`, `cuda`, `mps` or `cpu`.
        gpus: devices to spread the layer group over, where they are GPUs.
        batch_size: sequences in a forward pass.
        auto_batch: whether the job computes `batch_size`: `execution.batch_size: auto`.
        auto_groups: whether the number of layer groups was chosen: `extraction.layer_groups: auto`.
        device_memory: the memory of the device, as configured; None takes what is free.
        jobs: the number of extraction jobs of the run that can run on this machine at a time.
        threads: CPU threads.
        verify: whether the first batch is compared with a direct forward pass.
        on_new_versions: what happens where the run would grow under other versions than before.
    """

    run: Run
    group: int
    shard: int
    manifest: Path
    trust_remote_code: bool = False
    device: str = "auto"
    gpus: int = 1
    batch_size: int = 1
    auto_batch: bool = False
    auto_groups: bool = False
    device_memory: str | None = None
    jobs: int = 1
    threads: int = 1
    verify: Verify = "auto"
    on_new_versions: OnNewVersions = "refuse"

    @property
    def name(self) -> str:
        """The name of the job for those that wait for it."""
        return f"{self.run.name}, layer group {self.group}, sequence shard {self.shard}"
