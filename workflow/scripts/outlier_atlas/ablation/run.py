"""The ablation stage, which runs all variants through the layer groups and writes the table.

Each layer group is loaded once, for all variants with edits in this layer group or below. A variant
starts at the boundary before the layer group of its first altered layer. The unaltered model writes
that boundary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from outlier_atlas import tables
from outlier_atlas.ablation.apply import alterations, weights_zeroed
from outlier_atlas.ablation.job import Ablation
from outlier_atlas.ablation.schedule import schedule
from outlier_atlas.ablation.streams import Streams, bytes_of
from outlier_atlas.ablation.table import columns
from outlier_atlas.ablation.target import TargetContext
from outlier_atlas.ablation.targets import Targets
from outlier_atlas.ablation.variants import UNALTERED, Variant
from outlier_atlas.devices.leases import devices
from outlier_atlas.devices.out_of_memory import short_of_memory
from outlier_atlas.earlier_jobs import TOKENS
from outlier_atlas.extraction import preflight
from outlier_atlas.loading.malloc_tuning import few_kernels
from outlier_atlas.loading.partial import DTYPES
from outlier_atlas.phases import note
from outlier_atlas.plan.memory_budget import ConcurrentJobs
from outlier_atlas.plan.requirements import plan
from outlier_atlas.progress import progress
from outlier_atlas.roles.block_sites import Tap, tap_of_decoder
from outlier_atlas.settings.ablation import AblationSettings
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.store.origin import Origin, in_words, others, refusal

if TYPE_CHECKING:
    from outlier_atlas.extraction.capture import LayerGroup

log = logging.getLogger(__name__)


def ablate(ablation: Ablation) -> None:
    """Run the variants that have not run, and write the table.

    Raises:
        ValueError: a target is not in the model, a mean is not known, the head of the model is not
            supported, a job does not fit into memory, or earlier results were computed with other
            versions.
    """
    try:
        _ablate(ablation)
    except _StartOverError:
        _ablate(ablation)


class _StartOverError(Exception):
    """Earlier results were removed after some of them had been counted as done."""


def _ablate(ablation: Ablation) -> None:
    settings = AblationSettings.model_validate(ablation.settings)
    ablation.weights.check()
    architecture = ablation.model[2]
    architecture.check_head(len(ablation.groups))
    architecture.check_length(int(np.diff(ablation.run.heldout.sequence_starts).max()))
    targets = Targets(TargetContext(settings, ablation.run.tables, architecture, ablation.means))
    trials = targets.trials()
    run = ablation.run
    note(dtype=run.layout.dtype, sizes={TOKENS: run.heldout.tokens})
    streams = Streams(run, run.layout, run.model_fingerprint, run.heldout)
    streams.delete_others()
    trials += targets.later_trials(ablation, streams, partial(_leased, ablation, streams))
    variants = {trial.variant.key: trial.variant for trial in trials}
    _run_all(ablation, variants, streams)
    streams.delete_streams()
    losses = {key: streams.losses(key) for key in variants}
    bootstrap = Bootstrap(ablation.run.heldout.sequences, **ablation.bootstrap)
    table_columns = columns(trials, losses, ablation.run.heldout.sequence_starts, bootstrap)
    table = tables.ABLATIONS.with_parameters({"bootstrap": bootstrap.record()})
    tables.write(ablation.run.tables, table, table_columns)


def _run_all(ablation: Ablation, variants: Mapping[str, Variant], streams: Streams) -> None:
    starts = {key: ablation.group_of(variant.first_layer) for key, variant in variants.items()}
    steps = schedule(UNALTERED.key, starts, len(ablation.groups), streams.there())
    if not any(steps):
        log.info("all %d variants were run already, nothing to compute", len(variants))
        return
    with _leased(ablation, streams) as where:
        for index, keys in enumerate(steps):
            if keys:
                _run_group(ablation, index, [variants[key] for key in keys], streams, where)


@contextmanager
def _leased(ablation: Ablation, streams: Streams) -> Iterator[Sequence[str]]:
    """Lease the devices of the stage, and check that the stage fits.

    Raises:
        ValueError: the stage does not fit, memory runs out, or earlier results were computed with
            other versions.
        _StartOverError: earlier results of other versions were removed.
    """
    gpus = min(ablation.gpus, *map(len, ablation.groups))
    with devices(ablation.device, gpus, f"{ablation.run.name}, ablation") as where:
        _settle(ablation, streams, Origin.now(where[0]))
        torch.set_num_threads(ablation.threads)
        few_kernels()
        _refuse_too_large(ablation, where)
        ablation.weights.check()
        try:
            yield where
        except (RuntimeError, MemoryError) as error:
            if not short_of_memory(error):
                raise
            raise ValueError(
                "ablation: out of memory with a single sequence; take more "
                f"extraction.layer_groups (now {len(ablation.groups)}). What was computed "
                "is kept where the layer groups stay"
            ) from error


def _settle(ablation: Ablation, streams: Streams, now: Origin) -> None:
    """Apply `execution.on_new_versions` before new results are added.

    Raises:
        ValueError: earlier results are of other versions, and must not be mixed with new ones.
        _StartOverError: earlier results of other versions were removed.
    """
    earlier = others(streams.origins(), now)
    how = ablation.on_new_versions
    if earlier and how == "refuse":
        raise ValueError(refusal(ablation.run.ablation, earlier, now))
    if earlier and how == "recompute":
        log.warning(
            "ablation: what was computed under %s no longer counts, and is computed again under %s "
            "(execution.on_new_versions: recompute)", in_words(earlier), now,
        )  # fmt: skip
        streams.delete_all()
        raise _StartOverError
    if earlier:
        log.warning(
            "ablation: has numbers of %s, and goes on under %s (execution.on_new_versions: keep)",
            in_words(earlier), now,
        )  # fmt: skip
    streams.add_origin(now)


def _refuse_too_large(ablation: Ablation, where: Sequence[str]) -> None:
    """Refuse a stage that cannot fit, as extraction does.

    The plan has batches of one sequence, no sites, and losses.

    Raises:
        ValueError: the stage cannot fit. A configuration that fits was logged.
    """
    layout = replace(
        ablation.run.layout,
        sites={}, store=(), perplexity=True, tokens=ablation.run.heldout.tokens,
        layer_groups=tuple((layers[0], layers[-1]) for layers in ablation.groups),
    )  # fmt: skip
    longest = int(np.diff(ablation.run.heldout.sequence_starts).max())
    stage_plan = plan(
        layout, ablation.run.model, ablation.run.resources, 1, longest, False,
        ablation.trust_remote_code, len(where),
    )  # fmt: skip
    budget = preflight.budget_of(where, ablation.device_memory, ConcurrentJobs())
    own = ablation.run.store_description["extraction"]
    preflight.refuse(stage_plan, budget, ablation.run.folder, own, ablation.auto_groups)


def _run_group(
    ablation: Ablation,
    index: int,
    variants: Sequence[Variant],
    streams: Streams,
    where: Sequence[str],
) -> None:
    """Load a layer group, run the variants through it, and delete the streams that they read."""
    from outlier_atlas.extraction.layer_group import load_group

    layers, architecture = ablation.groups[index], ablation.model[2]
    last = index + 1 == len(ablation.groups)
    width = architecture.head.channels
    tap = tap_of_decoder(layers[-1], width) if last else architecture.taps[layers[-1]]["resid_post"]
    dtype, trust = ablation.run.layout.dtype, ablation.trust_remote_code
    group = load_group(ablation.model, layers, dtype, trust, [tap], where)
    own = {variant.key for variant in variants if (variant.key, index) in streams.there()}
    total = len(variants) * ablation.run.heldout.tokens
    with progress(total, " tokens", f"layers {layers[0]} to {layers[-1]}") as bar:
        for variant in variants:
            source = variant.key if variant.key in own else UNALTERED.key
            _run_variant(ablation, index, variant, source, streams, group)
            if variant != UNALTERED:
                streams.delete((variant.key, index))
            bar.update(ablation.run.heldout.tokens)
    streams.delete((UNALTERED.key, index))


def _run_variant(
    ablation: Ablation,
    index: int,
    variant: Variant,
    source: str,
    streams: Streams,
    group: LayerGroup,
) -> None:
    """Run one variant through a layer group, sequence by sequence.

    Args:
        ablation: the ablation job.
        index: index of the layer group.
        variant: the variant.
        source: key of the variant whose residual stream is the input.
        streams: files of the residual streams and losses.
        group: the layer group.
    """
    layers, architecture = ablation.groups[index], ablation.model[2]
    altered = alterations(architecture, variant.edits, layers)
    dtype = architecture.boundary_dtypes[layers[0]] or DTYPES[ablation.run.layout.dtype]
    with (
        weights_zeroed(group.model, architecture, variant.edits, layers),
        streams.writing((variant.key, index + 1)) as put,
    ):
        for sequence in range(ablation.run.heldout.sequences):
            ids = torch.from_numpy(ablation.run.heldout.sequence(sequence).astype(np.int64))[None]
            batch = streams.read((source, index), sequence, dtype)[None] if index else ids
            group.run_directly(batch, partial(_keep, group, ids, put), altered)
        ablation.weights.check()  # an overwritten file changes the memory-mapped weights


def _keep(
    group: LayerGroup,
    ids_1T: torch.Tensor,
    put: Callable[[NDArray[np.uint8]], None],
    _: Tap,
    output_1TC: torch.Tensor,
) -> None:
    """Write the output of a layer group for one sequence: the residual stream or losses."""
    if group.head is not None:
        output_1TC = group.head.losses(output_1TC, ids_1T)
    put(bytes_of(output_1TC[0]))
