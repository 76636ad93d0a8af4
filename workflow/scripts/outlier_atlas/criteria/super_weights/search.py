"""Later search for super weights, with all known super weights set to zero.

A super weight can hide another one (Yu et al. 2024, arXiv 2411.07191). The output of the second one
is above the threshold only if the first one is zero. Therefore the held-out sequences run with all
known super weights at zero. They are searched by the same definition until a round finds no new
super weight.

Each layer group of a round leaves a record on disk. A killed run resumes after the last record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from outlier_atlas.ablation.apply import weight_at, weights_zeroed
from outlier_atlas.ablation.streams import Streams, bytes_of
from outlier_atlas.ablation.target import Devices
from outlier_atlas.ablation.variants import Later, Variant, Weight, ZeroExpertWeight, ZeroWeight
from outlier_atlas.loading.partial import DTYPES
from outlier_atlas.progress import progress
from outlier_atlas.roles.block_sites import Tap
from outlier_atlas.settings.sites import EXPERT_OUT, SUPER_WEIGHT_SITES
from outlier_atlas.statistics.experts import ExpertMagnitudes, summarize_experts
from outlier_atlas.statistics.summary import TileRange
from outlier_atlas.statistics.super_weights import LargestOutput, Spike, TokenPeaks

if TYPE_CHECKING:
    from outlier_atlas.ablation.job import Ablation
    from outlier_atlas.extraction.capture import LayerGroup

Row = dict[str, Any]


def search(
    ablation: Ablation,
    known: Sequence[Weight],
    criterion: Mapping[str, float],
    rounds: int,
    streams: Streams,
    devices: Devices,
) -> list[Later]:
    """Return the super weights that appear only if others are zero, round by round.

    Args:
        ablation: the ablation job.
        known: the super weights of the run.
        criterion: the block `detection.super_weights` of the run's tables.
        rounds: maximum number of rounds.
        streams: the streams of the ablation.
        devices: a function that leases the devices.
    """
    later: list[Later] = []
    zero = tuple(known)
    for number in range(1, rounds + 1) if zero else ():
        rows = _round(ablation, Variant(zero), streams, devices)
        new = [
            Later(number, weight, zero, row["input"], row["output"], row["share"])
            for row in rows
            if (weight := _weight(row)) not in zero and _passes(row, criterion)
        ]
        if not new:
            break
        later += new
        zero = (*zero, *(each.weight for each in new))
    return later


def _passes(row: Row, criterion: Mapping[str, float]) -> bool:
    spike = min(abs(row["input"]), abs(row["output"]))
    return bool(spike > criterion["threshold"] and row["share"] >= criterion["min_share"])


def _weight(row: Row) -> Weight:
    if row["expert"] is None:
        return ZeroWeight(row["layer"], row["row"], row["column"])
    return ZeroExpertWeight(row["layer"], row["expert"], row["row"], row["column"])


def _round(
    ablation: Ablation, variant: Variant, streams: Streams, devices: Devices
) -> Iterator[Row]:
    """Yield the largest output of every down projection, over all held-out sequences."""
    key = f"search{variant.key}"
    groups = range(len(ablation.groups))
    missing = [index for index in groups if streams.record(key, index) is None]
    if missing:
        # The input of a layer group is deleted only after its record has been written.
        on_disk = streams.there()
        first = missing[0] if not missing[0] or (key, missing[0]) in on_disk else 0
        with devices() as where:
            for index in groups[first:]:
                streams.write_record(key, index, _group(ablation, index, variant, streams, where))
                streams.delete((key, index))
    for index in groups:
        record = streams.record(key, index)
        assert record is not None
        yield from record["spikes"]


def _group(
    ablation: Ablation, index: int, variant: Variant, streams: Streams, where: Sequence[str]
) -> dict[str, list[Row]]:
    """Run a variant through a layer group and return the largest outputs of its layers."""
    from outlier_atlas.extraction.layer_group import load_group

    key = f"search{variant.key}"
    layers, architecture = ablation.groups[index], ablation.model[2]
    last = index + 1 == len(ablation.groups)
    sites = {*SUPER_WEIGHT_SITES, EXPERT_OUT}
    # The run searched only the sites that it measures.
    sites &= {*ablation.run.layout.sites}
    measured = [
        tap
        for each in layers
        for site, tap in architecture.taps[each].items()
        if site in sites and each in ablation.run.layout.layers
    ]
    if last and not measured:
        return {"spikes": []}
    end = [] if last else [architecture.taps[layers[-1]]["resid_post"]]
    group = load_group(
        ablation.model, layers, ablation.run.layout.dtype, ablation.trust_remote_code,
        [*measured, *end], where,
    )  # fmt: skip
    dtype = architecture.boundary_dtypes[layers[0]] or DTYPES[ablation.run.layout.dtype]
    outputs = _LargestOutputs(ablation.run.heldout.sequence_starts)
    description = f"super weights again, layers {layers[0]} to {layers[-1]}"
    with (
        weights_zeroed(group.model, architecture, variant.edits, layers),
        nullcontext(_discard) if last else streams.writing((key, index + 1)) as put,
        progress(ablation.run.heldout.tokens, " tokens", description) as bar,
    ):
        for sequence in range(ablation.run.heldout.sequences):
            ids = ablation.run.heldout.sequence(sequence)
            batch = torch.from_numpy(ids.astype(np.int64))
            if index:
                batch = streams.read((key, index), sequence, dtype)
            group.run_directly(batch[None], partial(_keep, outputs, sequence, put))
            bar.update(len(ids))
        ablation.weights.check()
        rows = list(_rows(outputs, group, ablation))
    return {"spikes": rows}


@dataclass
class _LargestOutputs:
    """The largest outputs of the layers that a pass has run.

    Attributes:
        starts: index of the first token of each held-out sequence, and the number of tokens.
    """

    starts: NDArray[np.int64]

    def __post_init__(self) -> None:
        self.dense: dict[int, LargestOutput] = defaultdict(lambda: LargestOutput(self.starts))
        self.routed: dict[int, ExpertMagnitudes] = {}

    def take(self, tap: Tap, sequence: int, values: torch.Tensor) -> None:
        """Add the values of a whole sequence at a site, (token, channel)."""
        start = int(self.starts[sequence])
        if tap.site == EXPERT_OUT:
            place = TileRange(sequence, start, len(values))
            new = ExpertMagnitudes(tap.experts, len(self.starts) - 1)
            summary = summarize_experts(values, place, tap.experts)
            self.routed.setdefault(tap.layer, new).update(summary)
        else:
            peaks = TokenPeaks.of(values, start)
            is_input = tap.site == SUPER_WEIGHT_SITES[0]
            self.dense[tap.layer].take_peaks(is_input, sequence, len(values), peaks)

    def spikes(self) -> Iterator[tuple[int, int | None, Spike]]:
        """Yield the layer, the routed expert and the spike of each down projection."""
        for layer, each in self.dense.items():
            if each.spike:
                yield layer, None, each.spike
        for layer, experts in self.routed.items():
            for expert in range(experts.experts):
                if spike := experts.spike(expert):
                    yield layer, expert, spike


def _keep(
    outputs: _LargestOutputs,
    sequence: int,
    put: Callable[[NDArray[np.uint8]], None],
    tap: Tap,
    output_1TC: torch.Tensor,
) -> None:
    if tap.site == "resid_post":
        put(bytes_of(output_1TC[0]))
    else:
        outputs.take(tap, sequence, output_1TC[0])


def _discard(_: NDArray[np.uint8]) -> None:
    """Write nothing: no layer group reads the output of the last one."""


def _rows(outputs: _LargestOutputs, group: LayerGroup, ablation: Ablation) -> Iterator[Row]:
    """Yield a row for each spike; its share uses the weight of the altered model."""
    for layer, expert, spike in outputs.spikes():
        row = asdict(spike) | {"layer": layer, "expert": expert}
        weight = weight_at(group.model, ablation.model[2], _weight(row))
        share = weight * spike.input / spike.output if spike.output else 0.0
        yield row | {"share": share}
