"""Layout of a run's store, from the configuration, the tokens and the architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.checkpoint.weight_integrity import CheckedWeights
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.files import write_error, write_record
from outlier_atlas.settings.configuration import Settings
from outlier_atlas.settings.extraction import ExtractionSettings, even_ranges
from outlier_atlas.settings.sites import ATTN_SINK, EXPERT_OUT, SITES
from outlier_atlas.store.dimensions import own_names
from outlier_atlas.store.layout import Layout
from outlier_atlas.store.run import Run
from outlier_atlas.store.shard_size import with_shards
from outlier_atlas.store.version import refuse_newer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from outlier_atlas.plan.requirements import Plan
    from outlier_atlas.roles.architecture import Architecture


def planned(settings: Settings, run: Run) -> Plan:
    """Return the plan of a run from its configuration and its model, without its tokens.

    The plan has one layer group with `extraction.layer_groups: auto`. It has batches of one
    sequence with `execution.batch_size: auto`.

    Raises:
        ValueError: the model has no such site or layer; or its files lack weights, or have weights
            of another shape or weights that the model does not use.
    """
    from outlier_atlas.plan.requirements import plan
    from outlier_atlas.roles.cached_architecture import described

    dataset, execution = settings.dataset, settings.execution
    trust = settings.model.trust_remote_code
    folder, config, architecture = described(run.model, run.resources, trust)
    extraction = settings.extraction
    if extraction.layer_groups == "auto":
        extraction = extraction.model_copy(update={"layer_groups": 1})
    layout = _layout(
        extraction, architecture, dataset.sequences * dataset.sequence_length,
        settings.chunk_tokens, settings.model.dtype,
    )  # fmt: skip
    _check_weights(folder, run.model, config, architecture, layout)
    if dataset.packing != "document":  # with packing `document`, all sequences may be shorter
        architecture.check_length(dataset.sequence_length)
    partly = dataset.packing == "document" or dataset.sequence_length % settings.chunk_tokens != 0
    return plan(
        layout, run.model, run.resources,
        1 if execution.batch_size == "auto" else execution.batch_size,
        dataset.sequence_length, partly, trust, execution.gpus_per_job,
    )  # fmt: skip


def planned_ablation(run_plan: Plan, trust: bool, run: Run) -> Plan:
    """Return the plan of a run's ablation stage in one layer group.

    The stage runs all layers in batches of one sequence, with losses and without sites.

    Args:
        run_plan: the plan of the run.
        trust: whether code from the checkpoint may run.
        run: the run.
    """
    from outlier_atlas.plan.requirements import plan
    from outlier_atlas.roles.cached_architecture import described

    last = described(run.model, run.resources, trust)[2].layers - 1
    layout = replace(
        run_plan.layout, sites={}, store=(), perplexity=True, layer_groups=((0, last),)
    )
    return plan(layout, run.model, run.resources, 1, run_plan.tokens, False, trust, run_plan.gpus)


CHUNK_BYTES = 2**31 - 2**10
"""Maximum number of bytes in a chunk, because Blosc takes slightly less than 2 GiB."""

RECORDED_VERSIONS = ("torch", "transformers", "nnsight", "zarr", "numcodecs")
RECORDED_OF_MODEL = ("source", "fingerprint", "layers")
"""Keys of the model's record that the report of another run compares."""


def prepare_store(
    settings: Mapping[str, Any],
    chunk_tokens: int,
    dtype: str,
    trust_remote_code: bool,
    run: Run,
) -> None:
    """Create or adapt the arrays of a run, and record their layout.

    Args:
        settings: the section `extraction` of the configuration.
        chunk_tokens: number of tokens in a chunk.
        dtype: dtype of the forward pass.
        trust_remote_code: whether code from the checkpoint may run.
        run: the run.

    Raises:
        ValueError: a newer version of the project wrote the run; the model has no such site or
            layer, fewer layers than layer groups, or fewer positions than a sequence has tokens;
            the code of the model does not run in the dtype; or the files of the model lack weights,
            or have weights of another shape or weights that the model does not use.
        OSError: the disk is full. The message has the path and the number of bytes needed.
    """
    from outlier_atlas.plan import group
    from outlier_atlas.plan.requirements import plan
    from outlier_atlas.roles.cached_architecture import described

    refuse_newer(run.folder)
    extraction = ExtractionSettings.model_validate(settings)
    CheckedWeights(run.model_record, run.resources).check()
    folder, config, architecture = described(run.model, run.resources, trust_remote_code)
    store = run.tokens
    lengths = np.diff(store.sequence_starts)
    longest = int(lengths.max())
    architecture.check_length(longest)
    layout = _layout(extraction, architecture, store.tokens, chunk_tokens, dtype)
    _check_weights(folder, run.model, config, architecture, layout)
    gathers = bool((lengths % chunk_tokens).any())
    run_plan = plan(layout, run.model, run.resources, 1, longest, gathers, trust_remote_code)
    coordinates = _coordinates(store)
    try:
        run.create_arrays(layout, coordinates)
    except OSError as error:
        size = sum(values.nbytes for values in coordinates.values())
        needed = f"its coordinates take up to {size:,} bytes"
        raise write_error(error, run.activations, needed) from error
    own = extraction.model_dump(mode="json", exclude_defaults=True)
    versions = {package: version(package) for package in RECORDED_VERSIONS}
    of_model = {name: run.model[name] for name in RECORDED_OF_MODEL}
    more = {"versions": versions, "extraction": own, "model": of_model}
    more |= group.record(run_plan.groups)
    write_record(run.store_record, layout.record() | more)


def _layout(
    extraction: ExtractionSettings,
    architecture: Architecture,
    tokens: int,
    chunk_tokens: int,
    dtype: str,
) -> Layout:
    named = extraction.layers
    layers = tuple(range(architecture.layers) if isinstance(named, str) else named)
    channels = architecture.check(extraction.sites, layers)
    # Layers above the last measured one run only for losses.
    running = architecture.layers if extraction.perplexity else layers[-1] + 1
    count = extraction.layer_groups
    assert count != "auto", "the caller fills in the number"
    if extraction.perplexity:
        architecture.check_head(count)
    if count > running:
        raise ValueError(
            f"extraction.layer_groups = {count}: above the {running} layers that run; take at most "
            f"{running}"
        )
    if count > 1 and architecture.one_group:
        raise ValueError(f"extraction.layer_groups = {count}: {architecture.one_group}; take 1")
    groups = even_ranges(running, count)
    _check_chunks(chunk_tokens, {**channels, "boundary": architecture.hidden_size})
    layout = Layout(
        sites=dict(channels),
        store=tuple(extraction.stored),
        layers=layers,
        hidden_size=architecture.hidden_size,
        tokens=tokens,
        chunk_tokens=chunk_tokens,
        compression=extraction.advanced.compression,
        layer_groups=tuple((first, stop - 1) for first, stop in groups),
        sequence_shards=extraction.sequence_shards,
        dtype=dtype,
        outlier_floor=extraction.advanced.outlier_floor,
        massive_floor=extraction.advanced.massive_floor,
        experts=architecture.experts(layers) if EXPERT_OUT in channels else 0,
        sink_tokens=extraction.advanced.sink_tokens if ATTN_SINK in channels else 0,
        perplexity=extraction.perplexity,
        own_dimensions=_own_dimensions(architecture),
    )
    return with_shards(layout)


def _check_chunks(chunk_tokens: int, channels: Mapping[str, int]) -> None:
    """Refuse chunks that are larger than the codec accepts."""
    widest = max(channels, key=lambda site: channels[site])
    most = CHUNK_BYTES // (4 * channels[widest])
    if chunk_tokens > most:
        raise ValueError(
            f"extraction.advanced.chunk_tokens = {chunk_tokens}: a chunk has less than 2 GiB, so "
            f"at most {most:,} tokens of {widest} ({channels[widest]:,} channels); take at most "
            f"{most}"
        )


def _own_dimensions(architecture: Architecture) -> dict[str, str]:
    widths = {
        site: {
            layer: taps[site].channels
            for layer, taps in enumerate(architecture.taps)
            if site in taps
        }
        for site in SITES
    }
    present = {site: of_site for site, of_site in widths.items() if of_site}
    return own_names(present, architecture.hidden_size)


def _check_weights(
    folder: Path,
    model: Mapping[str, Any],
    config: PretrainedConfig,
    architecture: Architecture,
    layout: Layout,
) -> None:
    """Check the weights by the headers of their files, before any job loads weights.

    Raises:
        ValueError: weights are missing, have another shape, or are not used by the model.
    """
    from outlier_atlas.loading.headers import check_headers

    running = range(layout.layer_groups[-1][1] + 1)
    check_headers(folder, model["files"], config, architecture, running, layout.perplexity)


def _coordinates(store: TokenStore) -> dict[str, NDArray[np.int32]]:
    """Return the coordinates of the token axis: token id, sequence and position."""
    lengths = np.diff(store.sequence_starts)
    sequence = np.repeat(np.arange(store.sequences, dtype=np.int32), lengths)
    position = np.arange(store.tokens) - np.repeat(store.sequence_starts[:-1], lengths)
    return {
        "token_id": store.token_ids,
        "sequence": sequence,
        "position": position.astype(np.int32),
    }
