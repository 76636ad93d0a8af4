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
        group: index of the layer group.
        shard: index of the sequence shard.
        manifest: path of the manifest, which is written once all rows are committed.
        trust_remote_code: whether code from the checkpoint may run.
        device: `auto`, `cuda`, `mps` or `cpu`.
        gpus: number of GPUs to spread the layer group over.
        batch_size: number of sequences in a forward pass.
        auto_batch: whether the job chooses `batch_size` (`execution.batch_size: auto`).
        auto_groups: whether `extraction.layer_groups: auto` chose the number of layer groups.
        device_memory: configured memory of the device; None uses the free memory.
        jobs: number of extraction jobs of the run that can run on this machine at the same time.
        threads: number of CPU threads.
        verify: when the first batch is compared with a direct forward pass.
        ahead: whether the job goes on with other sequence shards of its layer group.
        on_new_versions: action if rows are missing and other rows were computed with other
            versions.
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
    ahead: bool = False
    on_new_versions: OnNewVersions = "refuse"

    @property
    def name(self) -> str:
        """The name of the job in messages to processes that wait for it."""
        return f"{self.run.name}, layer group {self.group}, sequence shard {self.shard}"
