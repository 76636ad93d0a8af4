"""The Zarr arrays of a run.

`activations.zarr` holds an array (layer, token, channel) per site, `boundaries.zarr` an array
(token, channel) per boundary, both float32 in chunks of one layer. float32 holds bfloat16 and
float16 values exactly; bit-shuffled, their zero bits cost nothing. `expert_out` has three arrays
(layer, token, routed): values, and as int32 experts and channels. `attn_sink` is (layer, token,
head): a number for each of a sequence's first `sink_tokens` tokens, and NaN for the others, which
have none: the fill value, and what readers of Zarr take for missing.

Only `create` gives the arrays their shape. Consolidated metadata is neither written nor read: with
several writers it goes stale, and what is written through stale metadata is lost without a word.
Nor does it matter which chunks lie on disk: what counts is in the commit records.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from outlier_atlas.settings.sites import ATTN_SINK
from outlier_atlas.store.chunks import ChunkFiles, codecs
from outlier_atlas.store.commits import COMMITS, Commit, forget
from outlier_atlas.store.fingerprints import Fingerprints
from outlier_atlas.store.layout import BOUNDARY, Compression, Layout, Part, Target, parts

log = logging.getLogger(__name__)

ACTIVATIONS = "activations.zarr"
BOUNDARIES = "boundaries.zarr"

FILL = {"float32": float("nan"), "int32": -1}
"""What a number is that was never written."""

Float32 = NDArray[np.float32]
_Shape = dict[str, Any]
"""`shape`, `chunks`, `dtype`, `dimension_names` and `attributes` of an array."""


def create(
    run: Path,
    layout: Layout,
    coordinates: Mapping[str, NDArray[np.int32]],
    fingerprints: Fingerprints,
) -> None:
    """Give the arrays of a run the shape of its layout, and keep only commits that are current.

    Arrays that have their shape already stay as they are; those of another shape are replaced, and
    those that the layout does not name are removed. Commits go before what they stand for: those of
    arrays that are replaced, removed or not there, and those of another fingerprint, whose rows are
    going to be overwritten.

    Args:
        run: folder of the run.
        layout: what the arrays shall be.
        coordinates: `token_id`, `sequence` and `position`, each (token,).
        fingerprints: of the chunks.
    """
    activations = zarr.open_group(run / ACTIVATIONS, mode="a", use_consolidated=False)
    boundaries = zarr.open_group(run / BOUNDARIES, mode="a", use_consolidated=False)
    axes = {"layer": np.array(layout.layers, np.int32), **coordinates}
    sites = {
        part.name: _part_shape(layout, site, part) for site in layout.store for part in parts(site)
    }
    between = {_boundary(layer): _boundary_shape(layout) for layer in layout.boundaries()}
    unfit = {*_unfit(activations, sites) - set(axes), *_unfit(boundaries, between)}
    there = {*activations.array_keys(), *boundaries.array_keys()}

    passed = _passed(run, layout)

    def void(commit: Commit, target: Target) -> bool:
        if passed(target, commit.rows.chunk):
            return True
        if not target.is_summary and any(
            name in unfit or name not in there for name in _names(target)
        ):
            return True
        return commit.fingerprint != fingerprints.of(commit.rows.chunk)

    dropped = forget(run / COMMITS, void)
    if dropped:
        log.warning(
            "%s: %d commits were of another configuration; what they stand for is computed again "
            "where it is needed", run.name, dropped,
        )  # fmt: skip
    for group, shapes in ((activations, sites), (boundaries, between)):
        for name in unfit & set(group.array_keys()):
            del group[name]
        for name in set(shapes) - set(group.array_keys()):
            _create_array(group, name, shapes[name], layout.compression)
    activations.attrs.put({"coordinates": " ".join(coordinates), "forward_dtype": layout.dtype})
    for name, values in axes.items():
        _write_coordinate(activations, name, values, "layer" if name == "layer" else "token")


def forget_passed(run: Path, layout: Layout) -> None:
    """Take boundaries that went when they had been read out of the commits.

    Only while no job of the run is at work.
    """
    passed = _passed(run, layout)
    forget(run / COMMITS, lambda commit, target: passed(target, commit.rows.chunk))


def _passed(run: Path, layout: Layout) -> Callable[[Target, int], bool]:
    """Whether a chunk is one of a boundary that went when it had been read."""
    if not layout.passing_boundaries:
        return lambda target, chunk: False
    group = zarr.open_group(run / BOUNDARIES, mode="r", use_consolidated=False)
    files = {name: ChunkFiles(array, layout.compression) for name, array in group.arrays()}

    def passed(target: Target, chunk: int) -> bool:
        file = files.get(_boundary(target.layer)) if target.array == BOUNDARY else None
        return file is not None and file.missing((chunk, 0))

    return passed


class DamagedChunkError(ValueError):
    """A chunk that cannot be read, or is not there.

    Attributes:
        target: which array and layer.
        chunk: which chunk of tokens.
    """

    def __init__(self, target: Target, chunk: int, cause: str) -> None:
        super().__init__(f"{target.array}, layer {target.layer}, chunk {chunk}: damaged ({cause})")
        self.target = target
        self.chunk = chunk


class Arrays:
    """The arrays of a run, open for reading and writing rows of tokens.

    Raises:
        ValueError: they are not there.
    """

    def __init__(self, run: Path, layout: Layout) -> None:
        self._layout = layout
        self._locks = run / "manifests" / "locks"
        self._rows = {layer: row for row, layer in enumerate(layout.layers)}
        self._arrays: dict[str, Any] = {}
        try:
            activations = zarr.open_group(run / ACTIVATIONS, mode="r+", use_consolidated=False)
            boundaries = zarr.open_group(run / BOUNDARIES, mode="r+", use_consolidated=False)
            self._arrays = {
                part.name: activations[part.name] for site in layout.store for part in parts(site)
            }
            self._arrays |= {_boundary(b): boundaries[_boundary(b)] for b in layout.boundaries()}
        except (FileNotFoundError, KeyError) as error:
            raise ValueError(
                f"{run / ACTIVATIONS}: not there, or not as manifests/store.json says ({error}); "
                f"delete manifests/store.json and run again"
            ) from error
        self._files = {
            name: ChunkFiles(array, layout.compression) for name, array in self._arrays.items()
        }

    def read(self, target: Target, start: int, stop: int) -> Float32:
        """Tokens `start` to `stop` of a target, (token, channel).

        Of a target of several arrays, theirs one after the other along the channels, as float32:
        it holds whole numbers up to 2^24 exactly.

        Raises:
            DamagedChunkError: a chunk is damaged or missing.
        """
        size = self._layout.chunk_tokens
        for chunk in range(start // size, -(-stop // size)):
            for name in _names(target):
                if self._files[name].missing(self._chunk(target, chunk)):
                    raise DamagedChunkError(target, chunk, "its file is missing")
        key = self._key(target, start, stop)
        try:
            values = [np.asarray(self._arrays[name][key], np.float32) for name in _names(target)]
        except (RuntimeError, ValueError) as error:
            raise DamagedChunkError(target, start // size, str(error)) from error
        return values[0] if len(values) == 1 else np.concatenate(values, axis=1)

    def write(self, target: Target, start: int, values: Float32) -> None:
        """Write rows of a target that lie within one chunk, from token `start`.

        They are (token, channel) as `read` gives them. A reader sees the chunk as it was or as it
        is now. Where the rows do not fill the chunk, the others in it are kept, whoever wrote them.
        """
        stop = start + len(values)
        chunk = start // self._layout.chunk_tokens
        first, last = self._layout.chunk_range(chunk)
        assert first <= start and stop <= last, "rows of one chunk"
        names = _names(target)
        of_each = list(zip(names, np.split(values, len(names), axis=1), strict=True))
        if (start, stop) == (first, last):
            for name, part in of_each:
                self._files[name].write(self._chunk(target, chunk), part)
            return
        key = self._key(target, start, stop)
        with self._chunk_lock(chunk):
            for name, part in of_each:
                self._arrays[name][key] = part.astype(self._arrays[name].dtype)

    def delete_boundary(self, boundary: Target, chunk: int) -> None:
        """Delete a chunk of a boundary that nobody will read."""
        (name,) = _names(boundary)
        self._files[name].delete(self._chunk(boundary, chunk))

    def _key(self, target: Target, start: int, stop: int) -> Any:
        tokens = slice(start, stop)
        return tokens if target.array == BOUNDARY else (self._rows[target.layer], tokens)

    def _chunk(self, target: Target, chunk: int) -> tuple[int, ...]:
        """Coordinates of a chunk in the array of its target."""
        row = () if target.array == BOUNDARY else (self._rows[target.layer],)
        return (*row, chunk, 0)

    @contextmanager
    def _chunk_lock(self, chunk: int) -> Iterator[None]:
        """Sequence shards that share a chunk read, change and write it one after the other."""
        self._locks.mkdir(parents=True, exist_ok=True)
        with (self._locks / f"chunk-{chunk}").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _names(target: Target) -> list[str]:
    """Names of the arrays that hold a target."""
    if target.array == BOUNDARY:
        return [_boundary(target.layer)]
    return [part.name for part in parts(target.array)]


def _boundary(layer: int) -> str:
    return f"into_layer_{layer}"


def _part_shape(layout: Layout, site: str, part: Part) -> _Shape:
    # What its numbers depend on, and no other site's: an array of another is replaced.
    of_sinks = {"sink_tokens": layout.sink_tokens} if site == ATTN_SINK else {}
    return {
        "shape": (len(layout.layers), layout.tokens, layout.sites[site]),
        "chunks": (1, min(layout.chunk_tokens, layout.tokens), layout.sites[site]),
        "dtype": part.dtype,
        "dimension_names": ("layer", "token", part.axis),
        "attributes": {
            "layers": list(layout.layers),
            "compression": layout.compression,
            **of_sinks,
        },
    }


def _boundary_shape(layout: Layout) -> _Shape:
    return {
        "shape": (layout.tokens, layout.hidden_size),
        "chunks": (min(layout.chunk_tokens, layout.tokens), layout.hidden_size),
        "dtype": "float32",
        "dimension_names": ("token", "channel"),
        "attributes": {"compression": layout.compression},
    }


def _unfit(group: zarr.Group, shapes: Mapping[str, _Shape]) -> set[str]:
    """Names of arrays that are there and not as they shall be, or shall not be there."""
    return {name for name, array in group.arrays() if _shape_of(array) != shapes.get(name)}


def _shape_of(array: zarr.Array[Any]) -> _Shape:
    return {
        "shape": array.shape,
        "chunks": array.chunks,
        "dtype": str(array.dtype),
        "dimension_names": getattr(array.metadata, "dimension_names", None),
        "attributes": dict(array.attrs),
    }


def _create_array(group: zarr.Group, name: str, shape: _Shape, compression: Compression) -> None:
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
    there = group.get(name)
    if isinstance(there, zarr.Array) and np.array_equal(np.asarray(there[:]), values):
        return
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=(min(len(values), 2**20),),
        dtype="int32",
        dimension_names=(dimension,),
        overwrite=True,
    )
    array[:] = values
