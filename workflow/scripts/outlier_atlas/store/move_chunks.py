"""Changes of an array's layers or tokens, which move chunks without rewriting them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zarr

from outlier_atlas.store.array_shapes import Shape

ASIDE = "aside"
"""Folder in an array's folder for chunks of layers without a row; zarr ignores it."""


def reshape(array: zarr.Array[Any], shape: Shape) -> None:
    """Give an array the layers and tokens of a shape, without rewriting chunks."""
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
    """Move the chunks of each layer from its row to the folder `ASIDE`."""
    (folder / ASIDE).mkdir(exist_ok=True)
    for row, layer in enumerate(layers):
        chunks = folder / "c" / str(row)
        if chunks.is_dir():
            chunks.rename(folder / ASIDE / str(layer))


def _put_back(folder: Path, layers: Sequence[int]) -> None:
    """Move the chunks of each layer from the folder `ASIDE` to its row.

    Chunks of layers without a row stay in `ASIDE`.
    """
    (folder / "c").mkdir(exist_ok=True)
    for row, layer in enumerate(layers):
        chunks = folder / ASIDE / str(layer)
        if chunks.is_dir():
            chunks.rename(folder / "c" / str(row))
    if not any((folder / ASIDE).iterdir()):
        (folder / ASIDE).rmdir()
