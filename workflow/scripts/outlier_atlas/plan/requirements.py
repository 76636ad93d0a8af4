"""Memory and disk that a run needs, from the configuration and the headers of files only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlier_atlas.loading.footprint import Sizes, sizes
from outlier_atlas.loading.shards import Outside, file_bytes, outside_bytes, unknown_parts
from outlier_atlas.plan.group import GroupPlan
from outlier_atlas.plan.queue_limits import THREADS
from outlier_atlas.roles.cached_architecture import described
from outlier_atlas.settings.extraction import even_ranges
from outlier_atlas.settings.sites import ATTN_SINK, CHANNEL_SITES, EXPERT_OUT
from outlier_atlas.store.layout import Layout

if TYPE_CHECKING:
    from outlier_atlas.plan.memory_budget import MemoryBudget

DISK_SHARE = {"bfloat16": 0.4, "float16": 0.55, "float32": 0.95}
"""Share of the float32 values that remains after lossless compression, by the dtype of the forward
pass. Bits that are always zero compress to almost nothing, and other bits hardly compress."""

CHANNEL_BYTES, TOKEN_BYTES, EXPERT_BYTES, TILE_BYTES = 48, 36, 56, 24 * 1024
"""Bytes of a summary for each channel, token and expert, and for each tile: its histogram and the
values above its floor."""


@dataclass(frozen=True)
class Plan:
    """Memory and disk that a run needs.

    Attributes:
        layout: the layout of the store.
        model: name of the model's class.
        sizes: sizes of the model's parts, for a batch of one sequence.
        file: bytes of each layer in the checkpoint's files.
        outside: bytes in these files of the parts outside the layers, by role.
        skipped: paths of the parts of the model and its checkpoint that are not loaded.
        one_group: whether the layers cannot be divided.
        batch_size: sequences in a forward pass.
        tokens: tokens of the longest sequence.
        gathers: whether a chunk can consist of several sequences.
        gpus: number of devices that a job spreads its layers over.
        quantized: whether the checkpoint has quantized weights.
    """

    layout: Layout
    model: str
    sizes: Sizes
    file: Mapping[int, int]
    outside: Mapping[Outside, int]
    skipped: tuple[str, ...]
    one_group: bool
    batch_size: int
    tokens: int
    gathers: bool
    gpus: int
    quantized: bool

    @cached_property
    def groups(self) -> tuple[GroupPlan, ...]:
        """The plan of each layer group."""
        groups = range(len(self.layout.layer_groups))
        return tuple(self._group(index).batched(self.batch_size) for index in groups)

    def _group(self, index: int) -> GroupPlan:
        """Return the plan of a layer group, in batches of one sequence."""
        layout, width = self.layout, 4 if self.layout.dtype == "float32" else 2
        layers = layout.group_layers(index)
        # Values that are captured inside a module are float32 in every dtype of the module.
        of_site = {
            site: layout.numbers(site) * (width if site in CHANNEL_SITES else 4)
            for site in layout.sites
        }
        measured = sum(layer in layout.layers for layer in layers)
        taken = measured * sum(of_site.values())
        stored = measured * sum(of_site[site] for site in layout.store)
        left = layout.hidden_size * width if layout.boundary_after(index) else 0
        head = layout.perplexity and layout.boundary_after(index) is None
        entering = 4 * layout.hidden_size * self.tokens if index else 0
        widest = max([layout.hidden_size, *(layout.sites[site] for site in layout.store)])
        tile = min(layout.chunk_tokens, self.tokens)
        unstored = [layout.sites[site] for site in layout.sites if site not in layout.store]
        return GroupPlan(
            layers=layout.layer_groups[index],
            file=self._file(layers, head),
            weights=self.sizes.weights(layers, head),
            fullest=self.sizes.fullest(layers, self.gpus, head),
            fused=self.sizes.fused,
            forward=self.sizes.forward,
            losses=self.sizes.losses if head else 0,
            entering=entering,
            sites=taken * self.tokens,
            boundary=left * self.tokens,
            gathered=(stored + left) * layout.chunk_tokens if self.gathers else 0,
            written=THREADS * 2 * 4 * widest * tile,
            summarized=THREADS * 4 * max(unstored, default=0) * tile,
            quantized=self.quantized,
        )

    def _file(self, layers: range, head: bool) -> int:
        """Return the bytes of files that a layer group reads, by the rules of `Sizes.weights`."""
        own = sum(self.file.get(layer, 0) for layer in layers) + self.outside["decoder"]
        embedded = 0 in layers or (head and self.sizes.tied)
        own += self.outside["embedding"] if embedded else 0
        return own + (self.outside["head"] if head else 0)

    @property
    def running(self) -> int:
        """Number of layers that run; layers above the last measured one do not run."""
        return self.layout.layer_groups[-1][1] + 1

    @property
    def values(self) -> int:
        """Number of values in the store."""
        numbers = sum(map(self.layout.numbers, self.layout.store))
        return len(self.layout.layers) * self.layout.tokens * numbers

    @property
    def boundary_values(self) -> int:
        """Number of values at the boundaries that exist at the same time."""
        boundaries = len(self.layout.boundaries())
        if self.layout.passing_boundaries:
            boundaries = min(boundaries, 2)  # one boundary is read while the next one is written
        return boundaries * self.layout.tokens * self.layout.hidden_size

    @property
    def summary_bytes(self) -> int:
        """Bytes of the summaries of all sites, made by extraction or by detection."""
        layout = self.layout
        tiles = (
            layout.chunks if self.tokens >= layout.chunk_tokens else layout.tokens // self.tokens
        )
        of_tiles = sum(
            EXPERT_BYTES * layout.experts
            if site == EXPERT_OUT
            else CHANNEL_BYTES * channels + TILE_BYTES
            for site, channels in layout.sites.items()
            if site != ATTN_SINK  # it has no summary
        )
        of_tokens = TOKEN_BYTES * sum(site in CHANNEL_SITES for site in layout.sites)
        return len(layout.layers) * (tiles * of_tiles + layout.tokens * of_tokens)

    @property
    def files(self) -> int:
        """Number of files: chunks and summaries."""
        summarized = len({*self.layout.sites} - {ATTN_SINK})
        of_sites = sum(self.layout.arrays(s) for s in self.layout.store) + summarized
        of_layers = len(self.layout.layers) * of_sites
        losses = int(self.layout.perplexity)
        return (of_layers + len(self.layout.boundaries()) + losses) * self.layout.chunks

    @property
    def disk(self) -> int:
        """Expected bytes of the run on the disk."""
        return self.on_disk(self.values + self.boundary_values) + self.summary_bytes

    def on_disk(self, values: int) -> int:
        """Return the expected bytes of a number of values after compression."""
        share = 1.0 if self.layout.compression == "none" else DISK_SHARE[self.layout.dtype]
        return int(4 * values * share)

    def peak(self, host: bool) -> int:
        """Return the peak memory of any job on the host or the device of its forward pass.

        Args:
            host: whether the forward pass is on the host.
        """
        return max(group.host_alone if host else group.device for group in self.groups)

    def taken(self, budget: MemoryBudget) -> int:
        """Return the peak of any job in the memory of its forward pass."""
        if budget.unified:
            return max(group.unified for group in self.groups)
        return self.peak(budget.host)

    @property
    def host_needed(self) -> int:
        """Peak host memory of any job if its forward pass is on a device."""
        return max(group.host for group in self.groups)

    def fits(self, budget: MemoryBudget) -> bool:
        """Return whether each job fits on its device and host; unknown memory counts as enough."""
        on_device = budget.memory is None or self.taken(budget) <= budget.memory
        return on_device and (
            budget.host_available is None or self.host_needed <= budget.host_available
        )

    def divided(self, layer_groups: int) -> Plan:
        """Return the plan of the same run in a number of layer groups."""
        if layer_groups == len(self.layout.layer_groups):
            return self
        parts = even_ranges(self.running, layer_groups)
        groups = tuple((first, stop - 1) for first, stop in parts)
        return replace(self, layout=replace(self.layout, layer_groups=groups))

    def batched(self, batch_size: int) -> Plan:
        """Return the plan of the same run in batches of another size."""
        return replace(self, batch_size=batch_size)

    def shortened(self, tokens: int) -> Plan:
        """Return a plan for shorter sequences with the same number of tokens in total."""
        forward = self.sizes.forward
        if forward is not None:  # an upper bound: attention may shrink faster
            forward = forward * tokens // self.tokens
        return replace(self, tokens=tokens, sizes=replace(self.sizes, forward=forward))


def plan(
    layout: Layout,
    model: Mapping[str, Any],
    resources: Path,
    batch_size: int,
    tokens: int,
    gathers: bool,
    trust_remote_code: bool,
    gpus: int = 1,
) -> Plan:
    """Return the plan of a run without reading a weight.

    Args:
        layout: layout of the store.
        model: the record of the model.
        resources: the folder that paths in the record are relative to.
        batch_size: sequences in a forward pass.
        tokens: tokens of the longest sequence.
        gathers: whether a chunk can consist of several sequences.
        trust_remote_code: whether code from the checkpoint may run.
        gpus: number of devices that a job spreads its layers over.
    """
    folder, config, architecture = described(model, resources, trust_remote_code)
    kept = architecture.head.modules if layout.perplexity else ()
    return Plan(
        layout=layout,
        model=architecture.model_class.__name__,
        sizes=sizes(config, architecture, layout.dtype, tokens),
        file=file_bytes(folder, model["files"], architecture),
        outside=outside_bytes(folder, model["files"], config, architecture, trust_remote_code),
        skipped=(
            *(path for path in architecture.skipped if path not in kept),
            *unknown_parts(folder, model["files"], architecture),
        ),
        one_group=architecture.one_group is not None
        or (layout.perplexity and architecture.end_reads_more),
        batch_size=batch_size,
        tokens=tokens,
        gathers=gathers,
        gpus=gpus,
        quantized=model.get("quantization") is not None,
    )
