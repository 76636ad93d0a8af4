"""What each array of a layout shall be: shape, chunks, dtype, dimensions and attributes."""

from __future__ import annotations

from outlier_atlas.settings.sites import ATTN_SINK, TOKEN_LOSS
from outlier_atlas.store.layout import Layout, SiteArray, boundary_array, parts
from outlier_atlas.store.rearrange import Shape


def shapes(layout: Layout) -> dict[str, Shape]:
    """What each array of a layout shall be, by name."""
    of_sites = {p.name: _part_shape(layout, site, p) for site in layout.store for p in parts(site)}
    between = {
        boundary_array(layer): _boundary_shape(layout, layer) for layer in layout.boundaries()
    }
    losses = {TOKEN_LOSS: _losses_shape(layout)} if layout.perplexity else {}
    return of_sites | between | losses


def _part_shape(layout: Layout, site: str, part: SiteArray) -> Shape:
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
