"""The `extraction` section."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from outlier_atlas.settings.section import (
    Index,
    PositiveFloat,
    PositiveInt,
    Section,
    refuse_repeats,
)
from outlier_atlas.settings.sites import ATTN_SINK, SITES, Site

LayerGroups = Annotated[int, Field(ge=1, le=4096)]
Verify = Literal["auto", "first_batch", "never"]


class AdvancedExtractionSettings(Section):
    chunk_tokens: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="Tokens in a Zarr chunk. `auto`: the sequence length, or its largest divisor "
        "up to 4096; 2048 with `packing: document`.",
    )
    compression: Literal["lz4", "zstd", "none"] = Field(
        "lz4",
        description="Codec of the chunks, bit-shuffled: `lz4` is fastest, `zstd` a little smaller.",
    )
    sink_tokens: Annotated[int, Field(ge=1, le=1024)] = Field(
        64,
        description="First tokens of each sequence among which `attn_sink` measures attention (the "
        "paper: 64). Another number makes this site stale, and no other.",
    )
    outlier_floor: PositiveFloat = Field(
        4.0,
        description="Least |x| that a summary keeps with its place, at the inputs of linear layers "
        "(`attn_in`, `attn_hidden`, `mlp_in`, `mlp_hidden`). Thresholds of `detection` above it "
        "never read the store; those below it do, and need the site stored. To raise it computes "
        "nothing again.",
    )
    massive_floor: PositiveFloat = Field(
        64.0, description="The same at all other sites, where far more values are large."
    )


class ExtractionSettings(Section):
    sites: Annotated[list[Site], Field(min_length=1)] = Field(
        ["attn_in", "mlp_in", "resid_post"],
        description="Places in each block that are measured.",
    )
    store: Literal["all"] | list[Site] = Field(
        "all",
        description="Those of the sites whose values are written to the store, such as "
        "`[resid_post]`, or `all`. Of the others only summaries are kept: all tables are the same, "
        "and thresholds may go down to `advanced.outlier_floor`. `[]` stores nothing (but "
        "`attn_sink`, which has no summary), and deletes boundaries when they have been read.",
    )
    layers: Literal["all"] | Annotated[list[Index], Field(min_length=1)] = Field(
        "all", description="Layers to measure, 0-based, such as `[0, 1, 15]`, or `all`."
    )
    layer_groups: LayerGroups | Literal["auto"] = Field(
        1,
        description="Number of parts the layers are cut into. A job loads one part at a time: more "
        "groups, less memory. `auto`: the fewest that fit, by the plan, into `device_memory` or "
        "what is free; chosen once, and kept until the model, what is measured or `device_memory` "
        "changes.",
    )
    sequence_shards: Annotated[int, Field(ge=1, le=4096)] = Field(
        1,
        description="Number of parts the sequences are cut into; they run side by side.",
    )
    perplexity: bool = Field(
        False,
        description="Whether the last layer group also computes the loss of the run's own tokens. "
        "Layers above the measured ones then run, too, and are not stored.",
    )
    verify: Verify = Field(
        "auto",
        description="Whether each job compares its first batch, bit for bit, with a direct forward "
        "pass before anything is stored; `auto`: where that is less than 2 % of its work (over 50 "
        "batches). Makes nothing stale.",
    )
    advanced: AdvancedExtractionSettings = Field(
        AdvancedExtractionSettings(), description="What hardly anybody needs to change."
    )

    @field_validator("sites")
    @classmethod
    def _canonical_sites(cls, sites: list[Site]) -> list[Site]:
        refuse_repeats(sites)
        return sorted(sites, key=SITES.index)

    @field_validator("store")
    @classmethod
    def _canonical_store(cls, store: str | list[Site]) -> str | list[Site]:
        if isinstance(store, str):
            return store
        refuse_repeats(store)
        return sorted(store, key=SITES.index)

    @field_validator("layers")
    @classmethod
    def _canonical_layers(cls, layers: str | list[int]) -> str | list[int]:
        if isinstance(layers, str):
            return layers
        refuse_repeats(layers)
        return sorted(layers)

    @property
    def stored(self) -> list[Site]:
        """The sites whose values are written to the store.

        `attn_sink` always is, where it is measured: it has no summary, and is hardly larger than
        one would be.
        """
        if isinstance(self.store, str):
            return self.sites
        return [site for site in SITES if site in self.store or site == ATTN_SINK in self.sites]

    @model_validator(mode="after")
    def _stored_sites_are_measured(self) -> ExtractionSettings:
        for site in self.stored:
            if site not in self.sites:
                raise ValueError(f"store names {site}, which is not among the sites; add it there")
        return self

    @model_validator(mode="after")
    def _enough_layers(self) -> ExtractionSettings:
        if self.perplexity or isinstance(self.layers, str):
            return self  # all layers run; how many there are, the model says
        if self.layer_groups != "auto" and self.layer_groups > max(self.layers) + 1:
            raise ValueError(
                f"layer_groups {self.layer_groups} is above the {max(self.layers) + 1} layers that "
                f"have to run to measure layer {max(self.layers)}"
            )
        return self


def even_ranges(count: int, parts: int) -> list[tuple[int, int]]:
    """[first, end) of each part of `count` things: contiguous, and as equal as can be."""
    cuts = [part * count // parts for part in range(parts + 1)]
    return list(pairwise(cuts))
