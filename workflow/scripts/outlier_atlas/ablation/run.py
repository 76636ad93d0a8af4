"""The ablation stage: every variant through the layer groups, and the table of what it costs.

Each layer group is loaded once, for all variants that are altered in it or below. A variant begins
at the boundary before the layer group of its first altered layer, which the unaltered model left.
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
from outlier_atlas.extraction import preflight
from outlier_atlas.loading.malloc_tuning import few_kernels
from outlier_atlas.loading.partial import DTYPES
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
    """Run what has not been run, and write the table.

    Raises:
        ValueError: a target is not in the model, a mean is not known, the model's head is not
            understood, it does not fit into memory, or the rest was computed under other
            versions.
    """
    try:
        _ablate(ablation)
    except _StartOverError:
        _ablate(ablation)


class _StartOverError(Exception):
    """Earlier results have been removed after some of them were taken for done."""


def _ablate(ablation: Ablation) -> None:
    settings = AblationSettings.model_validate(ablation.settings)
    ablation.weights.check()
    architecture = ablation.model[2]
    architecture.check_head(len(ablation.groups))
    architecture.check_length(int(np.diff(ablation.run.heldout.sequence_starts).max()))
    targets = Targets(TargetContext(settings, ablation.run.tables, architecture, ablation.means))
    trials = targets.trials()
    run = ablation.run
    streams = Streams(run, run.layout, run.model_fingerprint, run.heldout)
    streams.delete_others()
    trials += targets.later_trials(ablation, streams, partial(_leased, ablation, streams))
    variants = {trial.variant.key: trial.variant for trial in trials}
    _run_all(ablation, variants, streams)
    streams.delete_streams()
    losses = {key: streams.losses(key) for key in variants}
    bootstrap = Bootstrap(ablation.run.heldout.sequences, **ablation.bootstrap)
    found = columns(trials, losses, ablation.run.heldout.sequence_starts, bootstrap)
    table = tables.ABLATIONS.with_parameters({"bootstrap": bootstrap.record()})
    tables.write(ablation.run.tables, table, found)


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
    """Lease the devices of the stage, once it is known that it fits.

    Raises:
        ValueError: it does not, or memory runs out all the same; or the rest was computed
            under other versions.
        _StartOverError: what was there is gone for that reason.
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
    """Apply `execution.on_new_versions` before anything is added to earlier results.

    Raises:
        ValueError: it is of other versions, and may not be mixed.
        _StartOverError: it was, and is gone.
    """
    found = others(streams.origins(), now)
    how = ablation.on_new_versions
    if found and how == "refuse":
        raise ValueError(refusal(ablation.run.ablation, found, now))
    if found and how == "recompute":
        log.warning(
            "ablation: what was computed under %s no longer counts, and is computed again under %s "
            "(execution.on_new_versions: recompute)", in_words(found), now,
        )  # fmt: skip
        streams.delete_all()
        raise _StartOverError
    if found:
        log.warning(
            "ablation: has numbers of %s, and goes on under %s (execution.on_new_versions: keep)",
            in_words(found), now,
        )  # fmt: skip
    streams.add_origin(now)


def _refuse_too_large(ablation: Ablation, where: Sequence[str]) -> None:
    """Refuse what cannot fit, as extraction does: sequences one by one, no site, and the losses.

    Raises:
        ValueError: it cannot; the block that would fit has been logged.
    """
    layout = replace(
        ablation.run.layout,
        sites={}, store=(), perplexity=True, tokens=ablation.run.heldout.tokens,
        layer_groups=tuple((layers[0], layers[-1]) for layers in ablation.groups),
    )  # fmt: skip
    longest = int(np.diff(ablation.run.heldout.sequence_starts).max())
    made = plan(
        layout, ablation.run.model, ablation.run.resources, 1, longest, False,
        ablation.trust_remote_code, len(where),
    )  # fmt: skip
    budget = preflight.budget_of(where, ablation.device_memory, ConcurrentJobs())
    own = ablation.run.store_description["extraction"]
    preflight.refuse(made, budget, ablation.run.folder, own, ablation.auto_groups)


def _run_group(
    ablation: Ablation,
    index: int,
    variants: Sequence[Variant],
    streams: Streams,
    where: Sequence[str],
) -> None:
    """Load a layer group, run the variants through it, and delete what they read."""
    from outlier_atlas.extraction.layer_group import load_group

    layers, architecture = ablation.groups[index], ablation.model[2]
    last = index + 1 == len(ablation.groups)
    made = architecture.head.channels
    tap = tap_of_decoder(layers[-1], made) if last else architecture.taps[layers[-1]]["resid_post"]
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
    """Run one variant through a layer group, a sequence at a time.

    Args:
        source: key of the variant whose residual stream it begins with.
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
        ablation.weights.check()  # a file that was overwritten may have changed under a memory map


def _keep(
    group: LayerGroup,
    ids_1T: torch.Tensor,
    put: Callable[[NDArray[np.uint8]], None],
    _: Tap,
    made_1TC: torch.Tensor,
) -> None:
    """Write what a layer group made of a sequence: the residual stream, or losses."""
    if group.head is not None:
        made_1TC = group.head.losses(made_1TC, ids_1T)
    put(bytes_of(made_1TC[0]))
