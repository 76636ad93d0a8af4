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
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from outlier_atlas.settings.sites import ATTN_SINK, SITES, TOKEN_LOSS
from outlier_atlas.store.arrays import BOUNDARIES, Arrays
from outlier_atlas.store.chunks import codecs
from outlier_atlas.store.commits import COMMITS, Commit, Rows, revise, without
from outlier_atlas.store.dimensions import rename
from outlier_atlas.store.fingerprints import Fingerprints
from outlier_atlas.store.layout import (
    BOUNDARY,
    Compression,
    Layout,
    Part,
    Target,
    arrays_of,
    boundary_array,
    has_layers,
    parts,
)
from outlier_atlas.store.rearrange import ASIDE, Shape, folder_of, reshape
from outlier_atlas.store.summaries import remove_superseded
from outlier_atlas.store.targets import DamagedChunkError, TargetChunks
from outlier_atlas.store.version import ACTIVATIONS, KEY, STORE_VERSION, is_older

log = logging.getLogger(__name__)

FILL = {"float32": float("nan"), "int32": -1}
"""What a number is that was never written."""

_COORDINATES = {
    "layer": "layer of the model, 0-based",
    "token_id": "the tokenizer's id of the token",
    "sequence": "sequence of the token, 0-based",
    "position": "position of the token in its sequence, 0-based",
}
"""The coordinates, and what each one is."""


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
    _remove_leftovers(run)
    if is_older(run):
        log.warning(
            "%s: made by an older version of Outlier Atlas; its dimensions get the names of this "
            "version, and its values stay as they are", run,
        )  # fmt: skip
    rename(run, layout)
    activations = zarr.open_group(run / ACTIVATIONS, mode="a", use_consolidated=False)
    boundaries = zarr.open_group(run / BOUNDARIES, mode="a", use_consolidated=False)
    axes = {"layer": np.array(layout.layers, np.int32), **coordinates}
    shapes = _shapes(layout)
    arrays = {name: (group, array) for group, name, array in _arrays(activations, boundaries, axes)}
    kept = {
        name: array
        for name, (_, array) in arrays.items()
        if _kept(array, shapes.get(name), layout.chunk_tokens)
    }
    dropped = revise(run / COMMITS, _current(layout, kept, fingerprints))
    if dropped:
        log.warning(
            "%s: %d commits were of another configuration; what they stand for is computed again "
            "where it is needed", run.name, dropped,
        )  # fmt: skip
    for name in set(arrays) - set(kept):
        del arrays[name][0][name]
    for name, shape in shapes.items():
        if name in kept:
            reshape(kept[name], shape)
        else:
            group = boundaries if name in map(boundary_array, layout.boundaries()) else activations
            _create_array(group, name, shape, layout.compression)
    for name, values in axes.items():
        _write_coordinate(activations, name, values, "layer" if name == "layer" else "token")
    # Last: with its version a store is finished.
    activations.attrs.put(
        {
            "coordinates": " ".join(coordinates),
            "forward_dtype": layout.dtype,
            KEY: STORE_VERSION,
        }
    )


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
    named, wanted = set(_shapes(layout)), set(layout.targets())

    def gone(target: Target) -> bool:
        return layout.superseded(target) or (_is_stored(target) and target not in wanted)

    revise(run / COMMITS, lambda commit: without(commit, gone))
    remove_superseded(run, layout)
    activations = zarr.open_group(run / ACTIVATIONS, mode="r+", use_consolidated=False)
    boundaries = zarr.open_group(run / BOUNDARIES, mode="r+", use_consolidated=False)
    for group, name, array in list(_arrays(activations, boundaries, _COORDINATES)):
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
            return commit  # whoever made it looks after it
        rows = commit.rows

        def gone(target: Target) -> bool:
            if target.is_summary:
                return False
            if not all(name in kept for name in arrays_of(target)):
                return True
            return _passed(layout, chunks, target, rows.chunk)

        there = without(commit, gone)
        stop = fingerprints.same_until(rows.start, rows.stop, commit.sequences)
        if stop == rows.start or not there.checksums:
            return without(commit, lambda target: True)
        same = Rows(rows.chunk, rows.start, stop)
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


def forget_passed(run: Path, arrays: Arrays, layout: Layout) -> None:
    """Take boundaries that went when they had been read out of the commits.

    Before what was computed from them is computed again.
    """

    def revised(commit: Commit) -> Commit:
        chunk = commit.rows.chunk
        return without(commit, lambda target: _passed(layout, arrays.chunks, target, chunk))

    revise(run / COMMITS, revised)


def _passed(layout: Layout, chunks: TargetChunks, target: Target, chunk: int) -> bool:
    """Whether a chunk is one of a boundary that went when it had been read."""
    if target.array != BOUNDARY or not layout.passing_boundaries:
        return False
    return target.layer in layout.boundaries() and not chunks.exists(target, chunk)


def _is_stored(target: Target) -> bool:
    """Whether a target of a commit lies in the arrays."""
    return not has_layers(target) or target.array in SITES


def _arrays(
    activations: zarr.Group, boundaries: zarr.Group, axes: Collection[str]
) -> Iterator[tuple[zarr.Group, str, Any]]:
    """All arrays but the coordinates."""
    for group in (activations, boundaries):
        yield from ((group, name, array) for name, array in group.arrays() if name not in axes)


def _shapes(layout: Layout) -> dict[str, Shape]:
    """What each array of a layout shall be, by name."""
    of_sites = {p.name: _part_shape(layout, site, p) for site in layout.store for p in parts(site)}
    between = {
        boundary_array(layer): _boundary_shape(layout, layer) for layer in layout.boundaries()
    }
    losses = {TOKEN_LOSS: _losses_shape(layout)} if layout.perplexity else {}
    return of_sites | between | losses


def _part_shape(layout: Layout, site: str, part: Part) -> Shape:
    # What its numbers depend on, and no other site's: an array of another is replaced.
    of_sinks = {"sink_tokens": layout.sink_tokens} if site == ATTN_SINK else {}
    return {
        "shape": (len(layout.layers), layout.tokens, layout.sites[site]),
        "chunks": (1, layout.chunk_tokens, layout.sites[site]),
        "dtype": part.dtype,
        "dimension_names": ("layer", "token", layout.dimension(site)),
        "attributes": {
            "long_name": part.long_name,
            "layers": list(layout.layers),
            "compression": layout.compression,
            **of_sinks,
        },
    }


def _boundary_shape(layout: Layout, layer: int) -> Shape:
    return {
        "shape": (layout.tokens, layout.hidden_size),
        "chunks": (layout.chunk_tokens, layout.hidden_size),
        "dtype": "float32",
        "dimension_names": ("token", "channel"),
        "attributes": {
            "long_name": f"residual stream into layer {layer}",
            "compression": layout.compression,
        },
    }


def _losses_shape(layout: Layout) -> Shape:
    return {
        "shape": (layout.tokens, 1),
        "chunks": (layout.chunk_tokens, 1),
        "dtype": "float32",
        "dimension_names": ("token", "loss"),
        "attributes": {
            "long_name": parts(TOKEN_LOSS)[0].long_name,
            "units": "nat",
            "compression": layout.compression,
        },
    }


def _kept(array: zarr.Array[Any], shape: Shape | None, chunk_tokens: int) -> bool:
    """Whether what is in an array stays: of a named one all but its layers and tokens is right."""
    if shape is None:
        return array.chunks[-2] == chunk_tokens
    have = (array.shape[-1], array.chunks, str(array.dtype))
    want = (shape["shape"][-1], shape["chunks"], shape["dtype"])
    attributes = shape["attributes"]
    alike = (
        array.attrs.get(name) == attributes.get(name) for name in ("compression", "sink_tokens")
    )
    return have == want and all(alike)


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
    attributes: dict[str, Any] = {"long_name": _COORDINATES[name]}
    there = group.get(name)
    # A token id of 0 is no fill value: some readers would take it for missing.
    if (
        isinstance(there, zarr.Array)
        and there.fill_value == FILL["int32"]
        and np.array_equal(np.asarray(there[:]), values)
    ):
        if dict(there.attrs) != attributes:
            there.attrs.put(attributes)
        return
    array = group.create_array(
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
