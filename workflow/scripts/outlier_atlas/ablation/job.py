"""The arguments of the ablation stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlier_atlas.ablation.means import Means
from outlier_atlas.checkpoint.weight_integrity import CheckedWeights
from outlier_atlas.roles.cached_architecture import described
from outlier_atlas.settings.configuration import OnNewVersions
from outlier_atlas.settings.extraction import even_ranges
from outlier_atlas.store.run import Run

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from outlier_atlas.roles.architecture import Architecture


@dataclass(frozen=True)
class Ablation:
    """The arguments of the ablation stage.

    Attributes:
        settings: the section `ablation` of the configuration.
        bootstrap: the block `detection.bootstrap`.
        run: the run.
        trust_remote_code: whether code from the checkpoint may run.
        device: `auto`, `cuda`, `mps` or `cpu`.
        gpus: number of GPUs to spread a layer group over.
        device_memory: configured memory of the device; None uses the free memory.
        threads: number of CPU threads.
        on_new_versions: action if results are missing and the other results were computed with
            other versions or on another kind of device.
        auto_groups: whether `extraction.layer_groups: auto` chose the number of layer groups.
    """

    settings: Mapping[str, Any]
    bootstrap: Mapping[str, Any]
    run: Run
    trust_remote_code: bool = False
    device: str = "auto"
    gpus: int = 1
    device_memory: str | None = None
    threads: int = 1
    on_new_versions: OnNewVersions = "refuse"
    auto_groups: bool = False

    @cached_property
    def means(self) -> Means:
        """The means of channels over the run's tokens."""
        return Means(self.run, self.run.commits())

    @cached_property
    def model(self) -> tuple[Path, PretrainedConfig, Architecture]:
        return described(self.run.model, self.run.resources, self.trust_remote_code)

    @cached_property
    def groups(self) -> list[range]:
        """All layers of the model, divided into the number of layer groups of the run."""
        count = len(self.run.layout.layer_groups)
        return [range(*part) for part in even_ranges(self.model[2].layers, count)]

    @cached_property
    def weights(self) -> CheckedWeights:
        return CheckedWeights(self.run.model_record, self.run.resources)

    def group_of(self, layer: int) -> int:
        """Return the index of the layer group that contains a layer."""
        return next(index for index, layers in enumerate(self.groups) if layer in layers)
