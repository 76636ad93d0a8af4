"""Creation of the arrays of a run, and changes of their shape.

`activations.zarr` contains an array (layer, token, channel) for each site. `boundaries.zarr`
contains an array (token, channel) for each boundary. Both are float32, in chunks of one layer.
float32 represents bfloat16 and float16 values exactly, and bit shuffling compresses the unused zero
bits to almost nothing. `expert_out` has five arrays (layer, token, routed): values, experts and
channels, and the largest inputs of the same products with their channels. Experts and channels are
int32. `attn_sink` is (layer, token, head), with a number for each of the first `sink_tokens` tokens
of a sequence. Other tokens have the fill value NaN, which Zarr readers treat as missing.
`token_loss` is (token, loss), with one loss for each token.

Only `create` changes the shape of arrays, and only `create` and `clear_up` remove arrays.
Consolidated metadata is neither written nor read. With several writers it becomes stale, and values
that are written through stale metadata are lost without an error. Chunks on disk count only if
commit records name them.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from outlier_atlas.store import metadata
from outlier_atlas.store.array_shapes import FILL, fits, shapes
from outlier_atlas.store.commits import revise
from outlier_atlas.store.current_commits import CurrentCommits
from outlier_atlas.store.dimensions import rename
from outlier_atlas.store.fingerprints import Fingerprints
from outlier_atlas.store.gather_chunks import gather
from outlier_atlas.store.groups import Groups
from outlier_atlas.store.layout import Layout
from outlier_atlas.store.metadata import COORDINATES, METADATA_FILE, DamagedMetadataError
from outlier_atlas.store.move_chunks import reshape
from outlier_atlas.store.run_files import RunFiles
from outlier_atlas.store.shard_size import may_be_gathered
from outlier_atlas.store.version import KEY, STORE_VERSION, is_older

log = logging.getLogger(__name__)

Coordinates = Mapping[str, NDArray[np.int32]]


def create(
    run: RunFiles, layout: Layout, coordinates: Coordinates, fingerprints: Fingerprints
) -> None:
    """Give the arrays of a run the shape of a layout, and keep only current commits.

    Data that is still valid stays, also if layers or tokens were added or removed. An array with
    other chunks is replaced. Data that the layout does not name stays until `clear_up`. Commits are
    removed before their data. Commits of another fingerprint are also removed, because their rows
    will be overwritten.

    Args:
        run: the files of the run.
        layout: the new layout of the arrays.
        coordinates: `token_id`, `sequence` and `position`, each (token,).
        fingerprints: the fingerprints of the chunks.
    """
    _restore_metadata(run)
    _remove_leftovers(run)
    if is_older(run.folder):
        log.warning(
            "%s: made by an older version of Outlier Atlas; its metadata is updated, and its "
            "values stay as they are", run.folder,
        )  # fmt: skip
    # The metadata changes from here on. Without its record, no job uses the arrays.
    metadata.remove(run)
    rename(run, layout)
    groups = Groups(run, mode="a")
    named = shapes(layout)
    arrays = groups.arrays()
    larger = layout.shard_chunks if may_be_gathered(arrays.values()) else 1
    for name, array in arrays.items():
        if fits(array, named.get(name), layout.chunk_tokens):
            gather(array, larger if name in named else 1)
    arrays = groups.arrays()
    kept = {
        name: array
        for name, array in arrays.items()
        if fits(array, named.get(name), layout.chunk_tokens)
    }
    _drop_commits(run, layout, kept, fingerprints)
    groups.remove(arrays.keys() - kept.keys())
    for name, shape in named.items():
        if name in kept:
            reshape(kept[name], shape)
        else:
            groups.create(name, shape, layout)
    axes = {"layer": np.array(layout.layers, np.int32), **coordinates}
    for name, values in axes.items():
        dimension = "layer" if name == "layer" else "token"
        _write_coordinate(groups.activations, name, values, dimension)
    groups.boundaries.attrs.put({})  # overwrite any contents
    # The version marks a store as complete.
    attributes = {"coordinates": " ".join(coordinates), "forward_dtype": layout.dtype}
    groups.activations.attrs.put({**attributes, KEY: STORE_VERSION})
    metadata.write(run, layout)


def _drop_commits(
    run: RunFiles,
    layout: Layout,
    kept: Mapping[str, zarr.Array[Any]],
    fingerprints: Fingerprints,
) -> None:
    """Drop the commits that do not match the current configuration."""
    current = CurrentCommits(layout, kept, fingerprints)
    dropped = revise(run.commit_files, current.reduced)
    if dropped:
        log.warning(
            "%s: %d commits were of another configuration; what they stand for is computed again "
            "where it is needed", run.name, dropped,
        )  # fmt: skip


def _restore_metadata(run: RunFiles) -> None:
    """Restore damaged metadata from its record.

    Without a record, arrays with metadata that zarr cannot read are dropped.
    """
    try:
        for damage in metadata.restore(run):
            log.warning("%s", damage)
    except DamagedMetadataError:
        pass  # a kill during a change of the arrays, an older version, or a damaged record
    for store in (run.activations, run.boundaries):
        for path in sorted(store.glob(f"*/{METADATA_FILE}")):
            _drop_unreadable(path.parent, zarr.open_array)
        if (store / METADATA_FILE).exists():
            _drop_unreadable(store, zarr.open_group)


def _drop_unreadable(folder: Path, open_: Callable[..., Any]) -> None:
    """Remove an array, or the metadata of a group, that zarr cannot read."""
    try:
        open_(folder, mode="r")
    except Exception as error:  # zarr has no specific error for metadata
        log.warning(
            "%s: damaged (%s %s); what it holds is computed again",
            folder / METADATA_FILE, type(error).__name__, error,
        )  # fmt: skip
        if open_ is zarr.open_group:
            (folder / METADATA_FILE).unlink()
        else:
            shutil.rmtree(folder)


def _remove_leftovers(run: RunFiles) -> None:
    """Remove temporary files of metadata and coordinates that a killed zarr left."""
    for store in (run.activations, run.boundaries):
        for pattern in ("*.partial", "*/*.partial", "*/c/*.partial"):
            for path in store.glob(pattern):
                path.unlink()


def _write_coordinate(
    group: zarr.Group, name: str, values: NDArray[np.int32], dimension: str
) -> None:
    """Write a coordinate, unless it exists with the same values."""
    attributes: dict[str, Any] = {"long_name": COORDINATES[name]}
    existing = group.get(name)
    # The fill value must not be 0, because some readers would treat token id 0 as missing.
    if (
        isinstance(existing, zarr.Array)
        and existing.fill_value == FILL["int32"]
        and np.array_equal(_values(existing), values)
    ):
        if dict(existing.attrs) != attributes:
            existing.attrs.put(attributes)
        return
    array = group.create_array(  # also replaces a damaged array
        name,
        shape=values.shape,
        chunks=(min(len(values), 2**20),),
        dtype="int32",
        dimension_names=(dimension,),
        attributes=attributes,
        fill_value=FILL["int32"],
        overwrite=True,
    )
    array[:] = values


def _values(array: zarr.Array[Any]) -> NDArray[Any]:
    """Return the values of a coordinate; empty if they are damaged."""
    try:
        return np.asarray(array[:])
    except Exception:  # codecs raise various errors for damaged bytes
        return np.empty(0)
