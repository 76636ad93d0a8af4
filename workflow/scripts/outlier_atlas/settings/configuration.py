"""The whole configuration, and the checks that involve several sections."""

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
        description="Name of the run's folder under `results/`; by default the name of the "
        "configuration file.",
    )


MEMORY = re.compile(r"(?P<number>[0-9]{1,10}(\.[0-9]{1,10})?)(?P<unit>MiB|GiB|TiB)")
MIB = {"MiB": 1, "GiB": 2**10, "TiB": 2**20}
MOST_MEMORY = 2**30
"""MiB in 1024 TiB."""


OnNewVersions = Literal["refuse", "recompute", "keep"]


class ExecutionSettings(Section):
    """Settings of the execution; none of them changes a result or makes a stage stale."""

    device: Literal["auto", "cuda", "mps", "cpu"] = Field(
        "auto",
        description="Device of the forward pass; `auto` takes the first available one of CUDA, "
        "MPS and CPU.",
    )
    device_memory: str | None = Field(
        None,
        description="Device memory that the run is planned for, such as `24GiB`, even if this "
        "machine has no such device. By default the free memory of the device.",
    )
    gpus_per_job: PositiveInt = Field(
        1,
        description="Number of GPUs over which a job spreads the layers of its layer group, so "
        "that more layers fit. The job computes on one GPU at a time.",
    )
    batch_size: PositiveInt | Literal["auto"] = Field(
        1,
        description="Sequences in one forward pass. `auto`: as many as the plan says fit into the "
        "device and still increase the speed, up to 16,384 tokens, or 1,024 on the CPU.",
    )
    threads: PositiveInt | None = Field(
        None,
        description="CPU threads of an extraction job; by default all cores up to 8, or the number "
        "of cores divided by the number of sequence shards if that is more.",
    )
    on_new_versions: OnNewVersions = Field(
        "refuse",
        description="What to do if a part of a run is missing and the rest was computed with "
        "another version of torch or transformers, or on another kind of device. The last bits of "
        "the values then differ. `refuse` stops with a message that names both; `recompute` "
        "computes the whole run again; `keep` computes the missing part, so that the run mixes "
        "values of both. A complete run is left as it is.",
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

    run: RunSettings = Field(RunSettings(), description="The name of the run.")
    model: ModelSettings = Field(description="The model: its source and its dtype.")
    dataset: DatasetSettings = Field(
        description="The dataset, and how its text is cut into sequences."
    )
    extraction: ExtractionSettings = Field(
        ExtractionSettings(), description="What is measured, and how the work is divided."
    )
    detection: DetectionSettings = Field(
        DetectionSettings(), description="One block for each criterion, with its thresholds."
    )
    weights: WeightsSettings = Field(
        WeightsSettings(), description="The measurement of the model's weights."
    )
    ablation: AblationSettings = Field(
        AblationSettings(),
        description="Perplexity of held-out tokens with outliers ablated; off by default.",
    )
    report: ReportSettings = Field(ReportSettings(), description="What the report shows.")
    execution: ExecutionSettings = Field(
        ExecutionSettings(),
        description="How and where the work is done; no change here makes a stage stale.",
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
        """Refuse detection settings that need values the summaries of unstored sites lack."""
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
                    f"extraction.store, or remove it here"
                )
        for site in detection.quantization_error.sites:
            if site not in extraction.sites:
                raise ValueError(
                    f"detection.quantization_error.sites: {site} is not measured; name it in "
                    f"extraction.sites, or remove it here"
                )
        if unstored and detection.exclude.sentence:
            raise ValueError(
                f"detection.exclude: tokens cannot be excluded at {unstored[0]}, because its "
                f"values are not stored; name it in extraction.store, or remove detection.exclude"
            )
        return self

    @property
    def chunk_tokens(self) -> int:
        """Number of tokens in a Zarr chunk, with `auto` resolved."""
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
    """Check a configuration and return its settings.

    Args:
        config: the content of the YAML file.
        default_name: name of the run if the configuration has none.
        written: spellings in the file of values that YAML reads differently, for the messages.

    Raises:
        ValueError: The configuration is invalid. The message has one line for each fault, with the
            key, its value and what is allowed.
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
            f"report.compare = {settings.name!r}: this is the run itself; name another run"
        )
    return settings
