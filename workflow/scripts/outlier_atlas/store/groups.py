"""The two Zarr groups of a run and their arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import zarr

from outlier_atlas.store.array_shapes import FILL, Shape
from outlier_atlas.store.chunks import codecs
from outlier_atlas.store.layout import Layout, boundary_array
from outlier_atlas.store.metadata import COORDINATES
from outlier_atlas.store.run_files import RunFiles


class Groups:
    """The Zarr groups of a run, open to create and remove arrays.

    Attributes:
        activations: group of the sites, the losses and the coordinates.
        boundaries: group of the boundaries.
    """

    def __init__(self, run: RunFiles, mode: Literal["a", "r+"]) -> None:
        """Open the groups; mode `a` creates missing groups."""
        self.activations = zarr.open_group(run.activations, mode=mode, use_consolidated=False)
        self.boundaries = zarr.open_group(run.boundaries, mode=mode, use_consolidated=False)

    def arrays(self) -> dict[str, zarr.Array[Any]]:
        """Return all arrays except the coordinates, by name."""
        listed = [*self.activations.arrays(), *self.boundaries.arrays()]
        return {name: array for name, array in listed if name not in COORDINATES}

    def remove(self, names: Iterable[str]) -> None:
        """Remove arrays with their chunks."""
        for name in names:
            group = self.boundaries if name in self.boundaries else self.activations
            del group[name]

    def create(self, name: str, shape: Shape, layout: Layout) -> None:
        """Create an array of a layout."""
        between = map(boundary_array, layout.boundaries())
        group = self.boundaries if name in between else self.activations
        group.create_array(
            name,
            **shape,
            fill_value=FILL[shape["dtype"]],
            compressors=codecs(layout.compression),
            # A chunk that contains only fill values also counts.
            config={"write_empty_chunks": True},
        )
