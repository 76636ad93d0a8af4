"""A whole configuration, and what must hold across its sections."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from outlier_atlas.settings.ablation import AblationSettings
from outlier_atlas.settings.dataset import DatasetSettings
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.settings.extraction import ExtractionSettings, even_ranges
from outlier_atlas.settings.faults import Written, faults
from outlier_atlas.settings.model import ModelSettings
from outlier_atlas.settings.report import ReportSettings
from outlier_atlas.settings.section import RUN_NAME, PositiveInt, Section, exactly
from outlier_atlas.settings.sites import floor_key
from outlier_atlas.settings.weights import WeightsSettings


class RunSettings(Section):
    name: str | None = Field(
        None,
        max_length=100,
        pattern=RUN_NAME,
        description="Folder of the run under `results/`; by default the configuration file's name.",
    )


MEMORY = re.compile(r"(?P<number>[0-9]{1,10}(\.[0-9]{1,10})?)(?P<unit>MiB|GiB|TiB)")
MIB = {"MiB": 1, "GiB": 2**10, "TiB": 2**20}
MOST_MEMORY = 2**30
"""MiB in 1024 TiB."""


OnNewVersions = Literal["refuse", "recompute", "keep"]


class ExecutionSettings(Section):
    """How and where the work is done: nothing here changes a result or makes a stage stale."""

    device: Literal["auto", "cuda", "mps", "cpu"] = Field(
        "auto", description="Device of the forward pass; `auto` takes CUDA, MPS or the CPU."
    )
    device_memory: str | None = Field(
        None,
        description="Memory of the device, such as `24GiB`: the run is planned for it, also where "
        "it is not on this machine. By default what the device has free.",
    )
    gpus_per_job: PositiveInt = Field(
        1,
        description="GPUs that a job spreads the layers of its layer group over, so that more of "
        "them fit; it computes on one at a time.",
    )
    batch_size: PositiveInt | Literal["auto"] = Field(
        1,
        description="Sequences in one forward pass. `auto`: as many as fit into the device and "
        "gain something, by the plan; up to 16,384 tokens, on the CPU 1,024.",
    )
    threads: PositiveInt | None = Field(
        None,
        description="CPU threads of an extraction job; by default the cores, divided by the "
        "sequence shards.",
    )
    on_new_versions: OnNewVersions = Field(
        "refuse",
        description="What happens if a part of a run is missing, and the rest was "
        "computed under another version of torch or transformers, or on another kind of device, "
        "which gives other last bits. `refuse` ends with a line that names both; `recompute` "
        "computes all of it again; `keep` goes on, so that the run has numbers of both. Where "
        "nothing is missing nothing happens.",
    )

    @field_validator("device_memory")
    @classmethod
    def _memory(cls, size: str | None) -> str | None:
        if size is None:
            return None
        match = MEMORY.fullmatch(size)
        if match is None:
            raise ValueError("must be a number and MiB, GiB or TiB, such as 24GiB")
        if not 1 <= float(match["number"]) * MIB[match["unit"]] <= MOST_MEMORY:
            raise ValueError("must be from 1MiB to 1024TiB")
        return size


class Settings(Section):
    """A whole configuration."""

    run: RunSettings = Field(RunSettings(), description="Names the run.")
    model: ModelSettings = Field(description="The model: where it comes from and its dtype.")
    dataset: DatasetSettings = Field(description="The text, and how it is cut into sequences.")
    extraction: ExtractionSettings = Field(
        ExtractionSettings(), description="What is measured, and how the work is divided."
    )
    detection: DetectionSettings = Field(
        DetectionSettings(), description="One block a criterion, with its thresholds."
    )
    weights: WeightsSettings = Field(
        WeightsSettings(), description="Whether the model's weights are measured."
    )
    ablation: AblationSettings = Field(
        AblationSettings(),
        description="Perplexity of held-out tokens with outliers ablated; off by default.",
    )
    report: ReportSettings = Field(ReportSettings(), description="What the report shows.")
    execution: ExecutionSettings = Field(
        ExecutionSettings(), description="How the work is done; never makes anything stale."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        shards, sequences = self.extraction.sequence_shards, self.dataset.sequences
        if shards > sequences:
            raise ValueError(
                f"extraction.sequence_shards = {shards}: above dataset.sequences = {sequences}; "
                f"take at most {sequences}"
            )
        chunk = self.chunk_tokens
        if self.dataset.packing == "concat":
            for first, _ in even_ranges(sequences, shards):
                if first * self.dataset.sequence_length % chunk:
                    raise ValueError(
                        f"extraction.advanced.chunk_tokens = {chunk}: a chunk would straddle two "
                        f"sequence shards; take a divisor of "
                        f"sequence_length = {self.dataset.sequence_length}, or auto"
                    )
        return self

    @model_validator(mode="after")
    def _summaries_suffice(self) -> Settings:
        """Of a site that is not stored only a summary is kept, which cannot answer everything."""
        extraction, detection = self.extraction, self.detection
        unstored = [site for site in extraction.sites if site not in extraction.stored]
        for site in unstored:
            least, key = detection.least.get(site), floor_key(site)
            floor = getattr(extraction.advanced, key)
            if least is not None and least < floor:
                raise ValueError(
                    f"detection asks for |x| down to {exactly(least)} at {site}, which is not "
                    f"stored, and its summaries keep values from {exactly(floor)}: raise the "
                    f"threshold, or name {site} in extraction.store, or lower "
                    f"extraction.advanced.{key}"
                )
            if site in detection.quantization_error.sites:
                raise ValueError(
                    f"detection.quantization_error.sites: {site} is not stored; name it in "
                    f"extraction.store, or take it out"
                )
        for site in detection.quantization_error.sites:
            if site not in extraction.sites:
                raise ValueError(
                    f"detection.quantization_error.sites: {site} is not measured; name it in "
                    f"extraction.sites, or remove it here"
                )
        if unstored and detection.exclude.said:
            raise ValueError(
                f"detection.exclude: tokens cannot be left out of {unstored[0]}, whose values are "
                f"not stored; name it in extraction.store, or leave detection.exclude out"
            )
        return self

    @property
    def chunk_tokens(self) -> int:
        """Tokens in a Zarr chunk, with `auto` worked out."""
        chunk, length = self.extraction.advanced.chunk_tokens, self.dataset.sequence_length
        if chunk != "auto":
            return chunk
        if self.dataset.packing == "document":
            return 2048
        return next(size for size in range(min(length, 4096), 0, -1) if length % size == 0)

    @property
    def name(self) -> str:
        """The run's name."""
        assert self.run.name is not None, "load() fills in the name"
        return self.run.name


def load(
    config: Mapping[str, Any], default_name: str, written: Written = MappingProxyType({})
) -> Settings:
    """Check a configuration.

    Args:
        config: what the YAML held.
        default_name: the run's name where the configuration gives none.
        written: how a file writes what YAML reads as something else, for the errors.

    Raises:
        ValueError: something is wrong; one line a fault, naming the key, its value and what is
            allowed.
    """
    try:
        settings = Settings.model_validate(dict(config))
    except ValidationError as error:
        raise ValueError("\n".join(faults(error, Settings, written))) from None
    if settings.run.name is None:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", default_name).strip("-._") or "run"
        settings = settings.model_copy(update={"run": RunSettings(name=name[:100])})
    if settings.report.compare == settings.name:
        raise ValueError(
            f"report.compare = {settings.name!r}: this is the run itself; name another one"
        )
    return settings
