"""Gives an array other layers or tokens: chunks move to their new rows, and none is rewritten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zarr

from outlier_atlas.store.array_shapes import Shape

ASIDE = "aside"
"""The folder, in an array's own, for chunks of layers that have no row; zarr ignores it."""


def reshape(array: zarr.Array[Any], shape: Shape) -> None:
    """Give an array the layers and tokens of a shape; chunks that it keeps are not rewritten."""
    folder, attributes = folder_of(array), dict[str, Any](array.attrs)
    layers = shape["attributes"].get("layers", [])
    tokens = (*array.shape[:-2], *shape["shape"][-2:])
    if array.shape != tokens:
        array.resize(tokens)
    moves = layers != attributes.get("layers", []) or (folder / ASIDE).is_dir()
    if moves:
        _put_aside(folder, attributes["layers"])
    if array.shape != shape["shape"]:
        array.resize(shape["shape"])
    if attributes != shape["attributes"]:
        array.attrs.put(shape["attributes"])
    if moves:
        _put_back(folder, layers)


def folder_of(array: zarr.Array[Any]) -> Path:
    """Return the folder of an array."""
    store: Any = array.store
    return Path(store.root) / array.path


def _put_aside(folder: Path, layers: Sequence[int]) -> None:
    """Move the chunks of each layer out of the rows that an array gives them."""
    (folder / ASIDE).mkdir(exist_ok=True)
    for row, layer in enumerate(layers):
        chunks = folder / "c" / str(row)
        if chunks.is_dir():
            chunks.rename(folder / ASIDE / str(layer))


def _put_back(folder: Path, layers: Sequence[int]) -> None:
    """Move the chunks of each layer into its row; those of others stay aside."""
    (folder / "c").mkdir(exist_ok=True)
    for row, layer in enumerate(layers):
        chunks = folder / ASIDE / str(layer)
        if chunks.is_dir():
            chunks.rename(folder / "c" / str(row))
    if not any((folder / ASIDE).iterdir()):
        (folder / ASIDE).rmdir()
