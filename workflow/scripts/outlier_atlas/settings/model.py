"""The `model` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from outlier_atlas.settings.section import Section
from outlier_atlas.settings.source import known_source, source_kind

DType = Literal["bfloat16", "float16", "float32"]

BUILTIN_MODELS = ("builtin:smollm2-135m-instruct",)


class ModelSettings(Section):
    source: str = Field(
        min_length=1,
        description="`builtin:smollm2-135m-instruct`, a local folder (`/…`, `./…`, `../…`, `~…`), "
        "a `.gguf` file (any part of a split one), or a hub id such as `Qwen/Qwen3-30B-A3B`.",
    )
    revision: str | None = Field(
        None,
        min_length=1,
        description="Branch, tag or commit of a hub model; resolved to a commit and recorded.",
    )
    dtype: DType = Field(
        "bfloat16",
        description="Data type of the weights in memory and of the forward pass; quantized "
        "weights are dequantized to it.",
    )
    trust_remote_code: bool = Field(
        False, description="Whether Python code that comes with the checkpoint may run."
    )

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        return known_source(source, BUILTIN_MODELS)

    @model_validator(mode="after")
    def _revision_of_a_hub_id(self) -> ModelSettings:
        if self.revision is not None and source_kind(self.source) != "hub":
            raise ValueError(
                f"revision {self.revision!r}: only a hub id has revisions, "
                f"and source is {self.source!r}; remove it"
            )
        return self
