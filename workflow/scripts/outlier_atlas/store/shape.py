"""The shape of the arrays of a run: made, changed and cleared up in one place.

`activations.zarr` holds an array (layer, token, channel) per site, `boundaries.zarr` an array
(token, channel) per boundary, both float32 in chunks of one layer. float32 holds bfloat16 and
float16 values exactly; bit-shuffled, their zero bits cost nothing. `expert_out` has five arrays
(layer, token, routed): values, experts and channels, and the largest inputs of the same products
with their channels; experts and channels are int32. `attn_sink` is (layer, token,
head): a number for each of a sequence's first `sink_tokens` tokens, and NaN for the others, which
have none: the fill value, and what readers of Zarr take for missing.
`token_loss` is (token, loss): one a token.

Only `create` gives the arrays their shape, and only it and `clear_up` remove any. Consolidated
metadata is neither written nor read: with several writers it goes stale, and what is written
through stale metadata is lost without a word. Nor does it matter which chunks lie on disk: what
counts is in the commit records.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import zarr
from numpy.typing import NDArray

from outlier_atlas.settings.sites import SITES
from outlier_atlas.store import metadata
from outlier_atlas.store.chunks import codecs
from outlier_atlas.store.commits import COMMITS, Commit, Rows, revise, without
from outlier_atlas.store.dimensions import rename
from outlier_atlas.store.fingerprints import Fingerprints
from outlier_atlas.store.layout import (
    BOUNDARY,
    Compression,
    Layout,
    Target,
    arrays_of,
    boundary_array,
    has_layers,
)
from outlier_atlas.store.metadata import COORDINATES, METADATA_FILE, DamagedMetadataError
from outlier_atlas.store.rearrange import ASIDE, Shape, folder_of, reshape
from outlier_atlas.store.shapes import shapes
from outlier_atlas.store.summaries import remove_superseded
from outlier_atlas.store.targets import DamagedChunkError, TargetChunks
from outlier_atlas.store.version import ACTIVATIONS, BOUNDARIES, KEY, STORE_VERSION, is_older

log = logging.getLogger(__name__)

FILL = {"float32": float("nan"), "int32": -1}
"""What a number is that was never written."""


def create(
    run: Path,
    layout: Layout,
    coordinates: Mapping[str, NDArray[np.int32]],
    fingerprints: Fingerprints,
) -> None:
    """Give the arrays of a run the shape of its layout, and keep only commits that are current.

    What is still right stays where it is, also where there are other layers or tokens now. An array
    of other chunks is replaced; what the layout does not name stays until `clear_up`. Commits go
    before what they stand for, and those of another fingerprint, whose rows are going to be
    overwritten.

    Args:
        run: folder of the run.
        layout: what the arrays shall be.
        coordinates: `token_id`, `sequence` and `position`, each (token,).
        fingerprints: of the chunks.
    """
    _restore_metadata(run)
    _remove_leftovers(run)
    if is_older(run):
        log.warning(
            "%s: made by an older version of Outlier Atlas; its dimensions get the names of this "
            "version, and its values stay as they are", run,
        )  # fmt: skip
    # From here to the end the metadata changes: without its record no job trusts it.
    metadata.remove(run)
    rename(run, layout)
    activations = zarr.open_group(run / ACTIVATIONS, mode="a", use_consolidated=False)
    boundaries = zarr.open_group(run / BOUNDARIES, mode="a", use_consolidated=False)
    axes = {"layer": np.array(layout.layers, np.int32), **coordinates}
    wanted = shapes(layout)
    arrays = {name: (group, array) for group, name, array in _arrays(activations, boundaries, axes)}
    kept = {
        name: array
        for name, (_, array) in arrays.items()
        if _kept(array, wanted.get(name), layout.chunk_tokens)
    }
    dropped = revise(run / COMMITS, _current(layout, kept, fingerprints))
    if dropped:
        log.warning(
            "%s: %d commits were of another configuration; what they stand for is computed again "
            "where it is needed", run.name, dropped,
        )  # fmt: skip
    for name in set(arrays) - set(kept):
        del arrays[name][0][name]
    for name, shape in wanted.items():
        if name in kept:
            reshape(kept[name], shape)
        else:
            group = boundaries if name in map(boundary_array, layout.boundaries()) else activations
            _create_array(group, name, shape, layout.compression)
    for name, values in axes.items():
        _write_coordinate(activations, name, values, "layer" if name == "layer" else "token")
    boundaries.attrs.put({})  # written again, whatever was in it
    # With its version a store is finished.
    activations.attrs.put(
        {
            "coordinates": " ".join(coordinates),
            "forward_dtype": layout.dtype,
            KEY: STORE_VERSION,
        }
    )
    metadata.write(run, layout)


def _restore_metadata(run: Path) -> None:
    """Restore damaged metadata from its record; without one, drop the arrays whose metadata zarr
    cannot read."""
    try:
        for damage in metadata.restore(run):
            log.warning("%s", damage)
    except DamagedMetadataError:
        pass  # a kill while the arrays changed, an older version, or damage to the record itself
    for store in (ACTIVATIONS, BOUNDARIES):
        for path in sorted((run / store).glob(f"*/{METADATA_FILE}")):
            _drop_unreadable(path.parent, zarr.open_array)
        if (run / store / METADATA_FILE).exists():
            _drop_unreadable(run / store, zarr.open_group)


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


def _remove_leftovers(run: Path) -> None:
    """What a killed zarr had not finished: metadata and coordinates, under random names."""
    for store in (ACTIVATIONS, BOUNDARIES):
        for pattern in ("*.partial", "*/*.partial", "*/c/*.partial"):
            for path in (run / store).glob(pattern):
                path.unlink()


def clear_up(run: Path, layout: Layout) -> None:
    """Remove what the layout does not name, once all that it names is there.

    Until then it stays: a configuration that is taken back costs nothing.
    """
    named, wanted = set(shapes(layout)), set(layout.targets())

    def gone(target: Target) -> bool:
        return layout.superseded(target) or (_is_stored(target) and target not in wanted)

    revise(run / COMMITS, lambda commit: without(commit, gone))
    remove_superseded(run, layout)
    activations = zarr.open_group(run / ACTIVATIONS, mode="r+", use_consolidated=False)
    boundaries = zarr.open_group(run / BOUNDARIES, mode="r+", use_consolidated=False)
    arrays = list(_arrays(activations, boundaries, COORDINATES))
    metadata.forget(run, [folder_of(array) for _, name, array in arrays if name not in named])
    for group, name, array in arrays:
        if name not in named:
            del group[name]
        shutil.rmtree(folder_of(array) / ASIDE, ignore_errors=True)


def _current(
    layout: Layout, kept: Mapping[str, Any], fingerprints: Fingerprints
) -> Callable[[Commit], Commit]:
    """A commit, as far as it stands for what is configured now."""
    chunks = TargetChunks(kept, layout.chunk_tokens)
    wanted = set(layout.targets())

    def current(commit: Commit) -> Commit:
        if not all(_is_stored(target) or target.is_summary for target in commit.checksums):
            return commit  # of a rule that checks it itself
        rows = commit.rows

        def gone(target: Target) -> bool:
            if target.is_summary:
                return False
            if not all(name in kept for name in arrays_of(target)):
                return True
            # Older versions deleted boundaries that had been read, and kept their commits.
            return target.array == BOUNDARY and not chunks.exists(target, rows.chunk)

        there = without(commit, gone)
        stop = fingerprints.same_until(rows.start, rows.stop, commit.sequences)
        same = Rows(rows.chunk, rows.start, stop)
        # Where chunks had another size, rows are cut where none are cut now.
        if stop == rows.start or not there.checksums or not fingerprints.cut_here(same):
            return without(commit, lambda target: True)
        checksums = there.checksums
        if stop < rows.stop:
            checksums = _shortened(chunks, there, same, wanted)
        sequences = fingerprints.sequences(same.start, stop)
        return Commit(same, fingerprints.of(rows.chunk), checksums, sequences, commit.details)

    return current


def _shortened(
    chunks: TargetChunks, commit: Commit, rows: Rows, wanted: set[Target]
) -> dict[Target, str]:
    """The checksums of the first rows of a commit; of damaged ones there are none."""
    checksums = {}
    stored = {target for target in commit.checksums if not target.is_summary}
    for target in filter(chunks.has, wanted & stored):
        counted = [(commit.rows, commit.checksums[target])]
        try:
            values = chunks.checked(target, rows.chunk, counted)
        except DamagedChunkError:
            continue
        checksums[target] = chunks.sum_of(values, rows)
    return checksums


def _is_stored(target: Target) -> bool:
    """Whether a target of a commit lies in the arrays."""
    return not has_layers(target) or target.array in SITES


def _arrays(
    activations: zarr.Group, boundaries: zarr.Group, axes: Collection[str]
) -> Iterator[tuple[zarr.Group, str, Any]]:
    """All arrays but the coordinates."""
    for group in (activations, boundaries):
        yield from ((group, name, array) for name, array in group.arrays() if name not in axes)


def _kept(array: zarr.Array[Any], shape: Shape | None, chunk_tokens: int) -> bool:
    """Whether what is in an array stays: of a named one all but its layers and tokens is right."""
    layers = array.attrs.get("layers", [])
    if (
        array.ndim < 2
        or array.attrs.get("compression") not in get_args(Compression)
        or not isinstance(layers, list)
        or not all(type(layer) is int for layer in layers)
    ):
        return False  # damaged metadata that zarr can read
    if shape is None:
        return array.chunks[-2] == chunk_tokens
    have = (array.shape[-1], array.chunks, str(array.dtype))
    want = (shape["shape"][-1], shape["chunks"], shape["dtype"])
    attributes = shape["attributes"]
    alike = (
        array.attrs.get(name) == attributes.get(name) for name in ("compression", "sink_tokens")
    )
    return have == want and all(alike) and bool(layers) == ("layers" in attributes)


def _create_array(group: zarr.Group, name: str, shape: Shape, compression: Compression) -> None:
    group.create_array(
        name,
        **shape,
        fill_value=FILL[shape["dtype"]],
        compressors=codecs(compression),
        config={
            "write_empty_chunks": True
        },  # a chunk that happens to be all fill value counts, too
    )


def _write_coordinate(
    group: zarr.Group, name: str, values: NDArray[np.int32], dimension: str
) -> None:
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
    """The values of a coordinate; none where they are damaged."""
    try:
        return np.asarray(array[:])
    except Exception:  # whatever a codec makes of damaged bytes
        return np.empty(0)
