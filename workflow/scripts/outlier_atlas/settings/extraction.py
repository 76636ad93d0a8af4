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
        description="Codec of the bit-shuffled chunks: `lz4` is fastest; `zstd` is 1 to 5 % "
        "smaller, and takes 1.6 times as long to write.",
    )
    sink_tokens: Annotated[int, Field(ge=1, le=1024)] = Field(
        64,
        description="Number of tokens at the beginning of each sequence for which `attn_sink` "
        "measures the attention that they receive (64 in the paper). A change makes only this "
        "site stale.",
    )
    outlier_floor: PositiveFloat = Field(
        4.0,
        description="Smallest |x| that a summary keeps with its token and channel, at the inputs "
        "of linear layers (`attn_in`, `attn_hidden`, `mlp_in`, `mlp_hidden`). Thresholds of "
        "`detection` at or above the floor never read the store; lower ones read it, and need the "
        "site stored. Raising the floor recomputes nothing.",
    )
    massive_floor: PositiveFloat = Field(
        64.0,
        description="`outlier_floor` of all other sites, where far more values are large.",
    )


class ExtractionSettings(Section):
    sites: Annotated[list[Site], Field(min_length=1)] = Field(
        ["attn_in", "mlp_in", "resid_post"],
        description="Sites in each block at which activations are measured.",
    )
    store: Literal["all"] | list[Site] = Field(
        "all",
        description="Sites whose values are written to the store, such as `[resid_post]`, or "
        "`all`. The other sites have summaries only: all tables stay the same, and thresholds may "
        "go down to `advanced.outlier_floor`. `[]` stores nothing except `attn_sink`, which has no "
        "summary, and deletes boundaries after they have been read.",
    )
    layers: Literal["all"] | Annotated[list[Index], Field(min_length=1)] = Field(
        "all", description="Layers to measure, 0-based, such as `[0, 1, 15]`, or `all`."
    )
    layer_groups: LayerGroups | Literal["auto"] = Field(
        1,
        description="Number of groups that the layers are divided into. A job loads one group, so "
        "more groups need less memory. `auto` takes the smallest number that, by the plan, fits "
        "into `device_memory` or the free memory. The number is chosen once and kept until the "
        "model, the measured sites or layers, or `device_memory` change.",
    )
    sequence_shards: Annotated[int, Field(ge=1, le=4096)] = Field(
        1,
        description="Number of parts that the sequences are divided into; the parts run in "
        "parallel where there are devices or cores for several jobs.",
    )
    perplexity: bool = Field(
        False,
        description="Whether the last layer group also computes the loss of the run's own tokens. "
        "Layers above the measured ones then run as well, and are not stored.",
    )
    verify: Verify = Field(
        "auto",
        description="Whether each job compares its first batch, bit for bit, with a direct forward "
        "pass before it stores anything. `auto`: only if this is less than 2 % of the job's work "
        "(more than 50 batches). A change makes no stage stale.",
    )
    advanced: AdvancedExtractionSettings = Field(
        AdvancedExtractionSettings(), description="Settings that few runs need to change."
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
        """Sites whose values are written to the store.

        They include `attn_sink` whenever it is measured: it has no summary, and its values are
        hardly larger than a summary would be.
        """
        if isinstance(self.store, str):
            return self.sites
        return [site for site in SITES if site in self.store or site == ATTN_SINK in self.sites]

    @model_validator(mode="after")
    def _stored_sites_are_measured(self) -> ExtractionSettings:
        for site in self.stored:
            if site not in self.sites:
                raise ValueError(f"store names {site}, which is not in sites; add it there")
        return self

    @model_validator(mode="after")
    def _enough_layers(self) -> ExtractionSettings:
        if self.perplexity or isinstance(self.layers, str):
            return self  # all layers run, and only the model tells how many there are
        if self.layer_groups != "auto" and self.layer_groups > max(self.layers) + 1:
            raise ValueError(
                f"layer_groups {self.layer_groups} is above the {max(self.layers) + 1} layers that "
                f"must run to measure layer {max(self.layers)}; take fewer"
            )
        return self


def even_ranges(count: int, parts: int) -> list[tuple[int, int]]:
    """Return [first, end) of each part of `count` items, contiguous and of nearly equal size."""
    cuts = [part * count // parts for part in range(parts + 1)]
    return list(pairwise(cuts))
