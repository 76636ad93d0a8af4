"""Layout of a run's store: its arrays over layers, tokens and channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from outlier_atlas.settings.sites import (
    ATTN_SINK,
    DIMENSIONS,
    EXPERT_OUT,
    LINEAR_INPUTS,
    SITE_NAMES,
    TOKEN_LOSS,
)
from outlier_atlas.store.run_files import STORE_RECORD

BOUNDARY = "boundary"

SUMMARY = "summary:"
"""Prefix of a target's array if the summary of a site is stored instead of its values."""

SUMMARY_VERSION = 6
"""Version of the summaries.

Raise the version if a change of the code changes the contents of a summary. All summaries are then
recomputed.
"""

Compression = Literal["lz4", "zstd", "none"]


@dataclass(frozen=True)
class SiteArray:
    """An array of a site: name, dtype, and a description of the values."""

    name: str
    dtype: Literal["float32", "int32"]
    long_name: str


def parts(site: str) -> tuple[SiteArray, ...]:
    """Return the arrays of a site or of the losses of the tokens.

    `expert_out` has five arrays: the values, the expert and the channel of each value, and the
    largest input of the same product with its channel. They are one target, so they are written,
    committed and invalidated together.
    """
    if site == TOKEN_LOSS:
        return (
            SiteArray(site, "float32", "-log of the probability that the model gives the token"),
        )
    values = SiteArray(site, "float32", SITE_NAMES[site])
    if site != EXPERT_OUT:
        return (values,)
    return (
        values,
        SiteArray(f"{site}_expert", "int32", f"expert that {site} is of"),
        SiteArray(f"{site}_channel", "int32", f"channel that the value of {site} is in"),
        SiteArray(f"{site}_input", "float32", "largest input of the expert's down projection"),
        SiteArray(
            f"{site}_input_channel", "int32", f"channel that the value of {site}_input is in"
        ),
    )


def arrays_of(target: Target) -> list[str]:
    """Return the names of the arrays of a target."""
    if target.array == BOUNDARY:
        return [boundary_array(target.layer)]
    return [part.name for part in parts(target.array)]


def has_layers(target: Target) -> bool:
    """Return whether the arrays of a target have a layer axis."""
    return target.array not in (BOUNDARY, TOKEN_LOSS)


def boundary_array(layer: int) -> str:
    """Return the name of the array of the residual stream into a layer."""
    return f"into_layer_{layer}"


@dataclass(frozen=True, order=True)
class Target:
    """A layer of an array: activations of a site, or the residual stream at a boundary.

    Attributes:
        array: a site, `TOKEN_LOSS` or `BOUNDARY`; for a summary, `SUMMARY`, a site, `@`, floor and
            version.
        layer: measured layer; for a boundary, the layer after it; for losses, the last layer.
    """

    array: str
    layer: int

    @property
    def is_summary(self) -> bool:
        """Whether the target is a summary instead of values."""
        return self.array.startswith(SUMMARY)

    @property
    def site(self) -> str:
        """The site of the values or the summary."""
        return self.array.removeprefix(SUMMARY).partition("@")[0]

    def serves(self, needed: Target) -> bool:
        """Return whether this summary can replace another one.

        A summary with a lower floor contains everything that a higher floor needs.

        Args:
            needed: the target of the other summary.
        """
        if not (self.is_summary and (self.site, self.layer) == (needed.site, needed.layer)):
            return False
        return self._version == needed._version and self.floor <= needed.floor

    @property
    def floor(self) -> float:
        """The smallest |x| that a summary stores with its place."""
        return float(self.array.partition("@")[2].rpartition(".")[0])

    @property
    def _version(self) -> str:
        return self.array.rpartition(".")[2]


@dataclass(frozen=True)
class Layout:
    """The shape of a store and its division into chunks, layer groups and sequence shards.

    Attributes:
        sites: number of channels of each measured site; for `expert_out`, the number of experts
            that a token is routed to; for `attn_sink`, the number of query heads.
        store: sites with stored values; for other sites, summaries are stored.
        layers: measured layers, by their number in the model, ascending.
        hidden_size: number of channels of the residual stream.
        tokens: length of the token axis, which concatenates all sequences.
        chunk_tokens: number of tokens in a chunk.
        compression: `lz4`, `zstd` or `none`.
        layer_groups: first and last layer of each layer group.
        sequence_shards: number of sequence shards.
        dtype: dtype of the forward pass; values are stored as float32.
        outlier_floor: smallest |x| that a summary stores with its place, at the inputs of linear
            layers. Detection computes summaries with a lower floor from stored values if needed.
        massive_floor: smallest |x| that a summary stores with its place, at all other sites.
        experts: number of routed experts in a layer; 0 if `expert_out` is not measured.
        sink_tokens: number of first tokens of a sequence that `attn_sink` measures; 0 if it is not
            measured.
        perplexity: whether the losses of the tokens are stored.
        own_dimensions: names of the last dimensions of sites that cannot share the declared name in
            this model (`store/dimensions.py`).
        shard_chunks: number of chunks in a file of an array that is created with this layout
            (`store/shard_size.py`); 1 without shards.
    """

    sites: Mapping[str, int]
    store: tuple[str, ...]
    layers: tuple[int, ...]
    hidden_size: int
    tokens: int
    chunk_tokens: int
    compression: Compression
    layer_groups: tuple[tuple[int, int], ...]
    sequence_shards: int
    dtype: str
    outlier_floor: float
    massive_floor: float
    experts: int = 0
    sink_tokens: int = 0
    perplexity: bool = False
    own_dimensions: Mapping[str, str] = field(default_factory=dict)
    shard_chunks: int = 1

    @property
    def chunks(self) -> int:
        """The number of chunks along the token axis."""
        return -(-self.tokens // self.chunk_tokens)

    def chunk_range(self, chunk: int) -> tuple[int, int]:
        """Return the first token of a chunk, and the token after the last."""
        start = chunk * self.chunk_tokens
        return start, min(start + self.chunk_tokens, self.tokens)

    def group_layers(self, group: int) -> range:
        """Return the layers that a layer group runs."""
        first, last = self.layer_groups[group]
        return range(first, last + 1)

    def boundaries(self) -> tuple[int, ...]:
        """Return the layer after each boundary."""
        return tuple(first for first, _ in self.layer_groups[1:])

    def measured(self, group: int) -> Iterator[Target]:
        """Yield the targets that a layer group writes, except boundaries.

        They are the values or summaries of each site, and the losses after the last layer.
        """
        for layer in self.group_layers(group):
            if layer in self.layers:
                yield from (self.target(site, layer) for site in self.sites)
        if self.perplexity and group + 1 == len(self.layer_groups):
            yield self.losses

    def target(self, site: str, layer: int) -> Target:
        """Return the target of a site: its values or their summary."""
        if site in self.store:
            return Target(site, layer)
        # Another floor is another target, so commits with a higher floor do not count.
        return Target(f"{SUMMARY}{site}@{self.floor(site)!r}.{SUMMARY_VERSION}", layer)

    def floor(self, site: str) -> float:
        """Return the smallest |x| that a summary of a site stores with its place.

        The floor of `expert_out` is 0, so all values are stored.
        """
        if site == EXPERT_OUT:
            return 0.0
        return self.outlier_floor if site in LINEAR_INPUTS else self.massive_floor

    @property
    def passing_boundaries(self) -> bool:
        """Whether boundaries are deleted once they are read, as in a run that stores no values."""
        return not {*self.store} - {ATTN_SINK}

    def targets(self) -> Iterator[Target]:
        """Yield the targets in arrays: stored sites, boundaries and losses."""
        yield from (Target(site, layer) for site in self.store for layer in self.layers)
        yield from (Target(BOUNDARY, layer) for layer in self.boundaries())
        if self.perplexity:
            yield self.losses

    def summaries(self) -> Iterator[Target]:
        """Yield the summaries of sites that are not stored."""
        sites = [site for site in self.sites if site not in self.store]
        yield from (self.target(site, layer) for site in sites for layer in self.layers)

    def superseded(self, target: Target) -> bool:
        """Return whether a target is a summary that a complete store does not need."""
        if not (target.is_summary and target.site in self.sites and target.layer in self.layers):
            return False
        current = self.target(target.site, target.layer)
        return current.is_summary and not target.serves(current)

    def boundary_after(self, group: int) -> Target | None:
        """Return the boundary after a layer group; None for the last layer group."""
        if group + 1 == len(self.layer_groups):
            return None
        return Target(BOUNDARY, self.layer_groups[group + 1][0])

    @property
    def losses(self) -> Target:
        """The target of the losses of the tokens."""
        return Target(TOKEN_LOSS, self.layer_groups[-1][1])

    def channels(self, target: Target) -> int:
        """Return the number of channels of a target."""
        return self.hidden_size if target.array == BOUNDARY else self.sites[target.site]

    def dimension(self, site: str) -> str:
        """Return the name of the last dimension of a site's arrays."""
        return self.own_dimensions.get(site, DIMENSIONS[site])

    def arrays(self, site: str) -> int:
        """Return the number of arrays of a site."""
        return len(parts(site))

    def numbers(self, site: str) -> int:
        """Return the number of numbers for a token in all arrays of a site."""
        return self.sites[site] * self.arrays(site)

    def record(self) -> dict[str, Any]:
        """Return the layout for the store's record; `from_record` is the inverse."""
        record = asdict(self)
        record["channels"] = record.pop("sites")
        return record | {"sites": list(self.sites)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Layout:
        """Return the layout that a store's record describes.

        Raises:
            ValueError: another version of the project wrote the record.
        """
        try:
            return cls._from_record(record)
        except KeyError as error:
            raise ValueError(
                f"{STORE_RECORD} has no {error}: another version of Outlier Atlas wrote it; "
                f"run the snakemake command of the run again, without `verify`"
            ) from error

    @classmethod
    def _from_record(cls, record: Mapping[str, Any]) -> Layout:
        return cls(
            sites={site: int(record["channels"][site]) for site in record["sites"]},
            store=tuple(record["store"]),
            layers=tuple(record["layers"]),
            hidden_size=record["hidden_size"],
            tokens=record["tokens"],
            chunk_tokens=record["chunk_tokens"],
            compression=record["compression"],
            layer_groups=tuple((first, last) for first, last in record["layer_groups"]),
            sequence_shards=record["sequence_shards"],
            dtype=record["dtype"],
            outlier_floor=record["outlier_floor"],
            massive_floor=record["massive_floor"],
            experts=record["experts"],
            sink_tokens=record["sink_tokens"],
            perplexity=record["perplexity"],
            own_dimensions=record.get("own_dimensions", {}),  # older records have none
            shard_chunks=record.get("shard_chunks", 1),
        )
