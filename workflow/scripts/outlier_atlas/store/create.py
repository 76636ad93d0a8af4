"""Gives the arrays of a run their shape, and changes it.

`activations.zarr` holds an array (layer, token, channel) per site, `boundaries.zarr` an array
(token, channel) per boundary, both float32 in chunks of one layer. float32 holds bfloat16 and
float16 values exactly; bit-shuffled, their zero bits cost nothing. `expert_out` has five arrays
(layer, token, routed): values, experts and channels, and the largest inputs of the same products
with their channels; experts and channels are int32. `attn_sink` is (layer, token,
head): a number for each of a sequence's first `sink_tokens` tokens, and NaN for the others, which
have none: the fill value, and what readers of Zarr take for missing.
`token_loss` is (token, loss): one a token.

Only `create` gives the arrays their shape, and only `create` and `clear_up` remove arrays.
Consolidated metadata is neither written nor read: with several writers it goes stale, and what is
written through stale metadata is lost without an error. Which chunks lie on the disk does not
matter: the commit records tell what counts.
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
from outlier_atlas.store.groups import Groups
from outlier_atlas.store.layout import Layout
from outlier_atlas.store.metadata import COORDINATES, METADATA_FILE, DamagedMetadataError
from outlier_atlas.store.move_chunks import reshape
from outlier_atlas.store.run_files import RunFiles
from outlier_atlas.store.version import KEY, STORE_VERSION, is_older

log = logging.getLogger(__name__)

Coordinates = Mapping[str, NDArray[np.int32]]


def create(
    run: RunFiles, layout: Layout, coordinates: Coordinates, fingerprints: Fingerprints
) -> None:
    """Give the arrays of a run the shape of its layout, and keep only the commits that are current.

    What is still right stays where it is, also where there are other layers or tokens now. An array
    of other chunks is replaced. What the layout does not name stays until `clear_up`. Commits go
    before what they stand for; so do commits of another fingerprint, whose rows will be
    overwritten.

    Args:
        run: the files of the run.
        layout: the layout that the arrays are to have.
        coordinates: `token_id`, `sequence` and `position`, each (token,).
        fingerprints: the fingerprints of the chunks.
    """
    _restore_metadata(run)
    _remove_leftovers(run)
    if is_older(run.folder):
        log.warning(
            "%s: made by an older version of Outlier Atlas; its dimensions get the names of this "
            "version, and its values stay as they are", run.folder,
        )  # fmt: skip
    # From here to the end the metadata changes: without its record no job trusts it.
    metadata.remove(run)
    rename(run, layout)
    groups = Groups(run, mode="a")
    arrays, wanted = groups.arrays(), shapes(layout)
    kept = {
        name: array
        for name, array in arrays.items()
        if fits(array, wanted.get(name), layout.chunk_tokens)
    }
    _drop_commits(run, layout, kept, fingerprints)
    groups.remove(arrays.keys() - kept.keys())
    for name, shape in wanted.items():
        if name in kept:
            reshape(kept[name], shape)
        else:
            groups.create(name, shape, layout)
    axes = {"layer": np.array(layout.layers, np.int32), **coordinates}
    for name, values in axes.items():
        dimension = "layer" if name == "layer" else "token"
        _write_coordinate(groups.activations, name, values, dimension)
    groups.boundaries.attrs.put({})  # written again, whatever was in it
    # With its version a store is finished.
    attributes = {"coordinates": " ".join(coordinates), "forward_dtype": layout.dtype}
    groups.activations.attrs.put({**attributes, KEY: STORE_VERSION})
    metadata.write(run, layout)


def _drop_commits(
    run: RunFiles,
    layout: Layout,
    kept: Mapping[str, zarr.Array[Any]],
    fingerprints: Fingerprints,
) -> None:
    """Drop the commits that do not stand for what is configured now."""
    current = CurrentCommits(layout, kept, fingerprints)
    dropped = revise(run.commit_files, current.reduced)
    if dropped:
        log.warning(
            "%s: %d commits were of another configuration; what they stand for is computed again "
            "where it is needed", run.name, dropped,
        )  # fmt: skip


def _restore_metadata(run: RunFiles) -> None:
    """Restore damaged metadata from its record; without one, drop the arrays whose metadata zarr
    cannot read."""
    try:
        for damage in metadata.restore(run):
            log.warning("%s", damage)
    except DamagedMetadataError:
        pass  # a kill while the arrays changed, an older version, or damage to the record itself
    for store in (run.activations, run.boundaries):
        for path in sorted(store.glob(f"*/{METADATA_FILE}")):
            _drop_unreadable(path.parent, zarr.open_array)
        if (store / METADATA_FILE).exists():
            _drop_unreadable(store, zarr.open_group)


def _drop_unreadable(folder: Path, open_: Callable[..., Any]) -> None:
    """Remove an array, or the metadata of a group, that zarr cannot read."""
    try:
        open_(folder, mode="r")
    except Exception as error:  # zarr has no error of its own for metadata
        log.warning(
            "%s: damaged (%s %s); what it holds is computed again",
            folder / METADATA_FILE, type(error).__name__, error,
        )  # fmt: skip
        if open_ is zarr.open_group:
            (folder / METADATA_FILE).unlink()
        else:
            shutil.rmtree(folder)


def _remove_leftovers(run: RunFiles) -> None:
    """Remove what a killed zarr had not finished: metadata and coordinates, under random names."""
    for store in (run.activations, run.boundaries):
        for pattern in ("*.partial", "*/*.partial", "*/c/*.partial"):
            for path in store.glob(pattern):
                path.unlink()


def _write_coordinate(
    group: zarr.Group, name: str, values: NDArray[np.int32], dimension: str
) -> None:
    """Write a coordinate, unless it is there with the same values."""
    attributes: dict[str, Any] = {"long_name": COORDINATES[name]}
    there = group.get(name)
    # A token id of 0 is no fill value: some readers would take it for missing.
    if (
        isinstance(there, zarr.Array)
        and there.fill_value == FILL["int32"]
        and np.array_equal(_values(there), values)
    ):
        if dict(there.attrs) != attributes:
            there.attrs.put(attributes)
        return
    array = group.create_array(  # over a damaged one, too
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
    """Return the values of a coordinate; none where they are damaged."""
    try:
        return np.asarray(array[:])
    except Exception:  # whatever a codec makes of damaged bytes
        return np.empty(0)
