"""Shape, chunks, dtype, dimensions and attributes of each array of a layout."""

from __future__ import annotations

from typing import Any, get_args

import zarr

from outlier_atlas.settings.sites import ATTN_SINK, TOKEN_LOSS
from outlier_atlas.store.layout import Compression, Layout, SiteArray, boundary_array, parts

Shape = dict[str, Any]
"""Arguments of an array: `shape`, `chunks`, `dtype`, `dimension_names`, `attributes`, `shards`."""

FILL = {"float32": float("nan"), "int32": -1}
"""Fill value of each dtype."""


def shapes(layout: Layout) -> dict[str, Shape]:
    """Return the shape of each array of a layout, by name."""
    return {
        name: shape | {"shards": _shards(shape["chunks"], layout.shard_chunks)}
        for name, shape in _shapes(layout).items()
    }


def _shards(chunks: tuple[int, ...], count: int) -> Shape | None:
    """Return the shards of an array with so many chunks of tokens in each; None for 1."""
    if count == 1:
        return None
    *before, tokens, last = chunks
    return {"shape": (*before, tokens * count, last), "index_location": "start"}


def _shapes(layout: Layout) -> dict[str, Shape]:
    of_sites = {p.name: _part_shape(layout, site, p) for site in layout.store for p in parts(site)}
    between = {
        boundary_array(layer): _boundary_shape(layout, layer) for layer in layout.boundaries()
    }
    losses = {TOKEN_LOSS: _losses_shape(layout)} if layout.perplexity else {}
    return of_sites | between | losses


def fits(array: zarr.Array[Any], shape: Shape | None, chunk_tokens: int) -> bool:
    """Return whether an array can stay: only its layers and tokens may differ from a layout.

    It also stays with shards of another size: `store/gather_chunks.py` makes them larger.

    Args:
        array: the array.
        shape: shape of the array in the layout; None if the layout does not name the array.
        chunk_tokens: number of tokens in a chunk.
    """
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


def _part_shape(layout: Layout, site: str, part: SiteArray) -> Shape:
    # Only the values of this site depend on it. An array with another value is replaced.
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
