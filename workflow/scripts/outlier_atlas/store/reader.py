"""Reading of a run's stored values in threads, each chunk compared with its commits.

>>> from outlier_atlas.store.reader import Reader
>>> run = Reader("results/smollm2-demo")
>>> run.read("resid_post", layers=11)                # (token, channel)
>>> run.read("resid_post", channels=507)             # (layer, token)
>>> run.read("resid_post", tokens=[3, 800, 4000])    # (layer, token, channel)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outlier_atlas.store.commits import Rows
from outlier_atlas.store.layout import Target, arrays_of, parts
from outlier_atlas.store.run import Run
from outlier_atlas.text import listed, ranges

Selection = int | slice | Sequence[int] | NDArray[np.integer[Any]] | None
"""One index, which drops its axis; a slice or several indices; None for all."""


@dataclass(frozen=True)
class _Part:
    """The wanted tokens of one chunk: their places in the result and in the chunk."""

    chunk: int
    to: slice | NDArray[np.intp]
    at: slice | NDArray[np.intp]
    whole: bool


class Reader:
    """The stored values of a run, which may still be at work.

    Args:
        folder: folder of the run, such as `results/smollm2-demo`.
        threads: number of threads that read and decode; by default one for each processor.

    Attributes:
        layers: measured layers, by their number in the model.
        dtype: dtype of the forward pass. Values are float32, which represents it exactly.
        arrays: names of the arrays that can be read.

    Raises:
        ValueError: the folder has no store, or its records or metadata are damaged.
    """

    def __init__(self, folder: Path | str, threads: int | None = None) -> None:
        # The records of the run have what is needed of the model.
        self._run = Run(Path(folder), Path(folder) / "no-model-record", Path(folder))
        if not self._run.store_record.is_file():
            raise ValueError(f"{folder}: has no store; name a folder such as results/<run>")
        layout = self._run.layout
        if self._run.known_model_fingerprint() is None:
            raise ValueError(
                f"{self._run.store_record}: does not name the model; run the snakemake command of "
                f"the run again"
            )
        self._sites = {part.name: site for site in layout.store for part in parts(site)}
        self.arrays = tuple(self._sites)
        self.layers = layout.layers
        self.dtype = layout.dtype
        self._commits = self._run.commits()
        self._fingerprint = self._run.fingerprints.of
        self._chunks = self._run.arrays(self._commits).chunks
        self._threads = threads or os.cpu_count() or 1
        self._local = threading.local()

    def read(
        self,
        array: str,
        layers: Selection = None,
        tokens: Selection = None,
        channels: Selection = None,
    ) -> NDArray[Any]:
        """Return values of an array, (layer, token, channel).

        Args:
            array: name of the array, such as a site.
            layers: numbers of layers in the model; by default all measured layers.
            tokens: indices on the token axis; by default all tokens.
            channels: indices of channels; by default all channels.

        Raises:
            ValueError: the array or an index does not exist, or rows are not computed yet.
            DamagedChunkError: a chunk is damaged, or not the one that was committed.
        """
        layout = self._run.layout
        if array not in self._sites:
            raise ValueError(f"{array}: is not stored; stored are {listed(self.arrays)}")
        site = self._sites[array]
        index = arrays_of(Target(site, self.layers[0])).index(array)
        rows = self._rows(layers)
        places, width = _indices("tokens", tokens, layout.tokens), layout.sites[site]
        columns = _indices("channels", channels, width)
        every = np.array_equal(columns, np.arange(width))
        dtype = self._chunks.blank(Target(site, self.layers[0]))[index].dtype
        values = np.empty((len(rows), len(places), len(columns)), dtype)

        def fill(task: tuple[tuple[int, int], _Part]) -> None:
            (row, layer), part = task
            target = Target(site, layer)
            # A whole chunk is decoded to its place; others are decoded to memory that is reused.
            direct = every and part.whole and len(arrays_of(target)) == 1
            into = [values[row, part.to]] if direct else self._memory(target)
            self._decode(target, part.chunk, into)
            if not direct:
                chosen = into[index][part.at]
                values[row, part.to] = chosen if every else chosen[:, columns]

        tasks = list(product(enumerate(rows), self._parts(places)))
        with ThreadPoolExecutor(max(1, min(self._threads, len(tasks)))) as readers:
            list(readers.map(fill, tasks))
        dropped = tuple(
            axis for axis, chosen in enumerate((layers, tokens, channels))
            if isinstance(chosen, int | np.integer)
        )  # fmt: skip
        return values.squeeze(dropped)

    def _decode(self, target: Target, chunk: int, into: list[NDArray[Any]]) -> None:
        """Decode a chunk whose rows are all committed."""
        rows = Rows(chunk, *self._run.layout.chunk_range(chunk))
        fingerprint = self._fingerprint(chunk)
        gaps = self._commits.gaps(target, rows, fingerprint)
        if gaps:
            raise ValueError(
                f"{self._run.folder}: {target.array}, layer {target.layer}, tokens "
                f"{gaps[0].start} to {gaps[0].stop - 1} are not computed yet as configured now; "
                f"run the snakemake command of the run first"
            )
        counted = self._commits.of(target, chunk, fingerprint)
        self._chunks.checked(target, chunk, counted, into)

    def _memory(self, target: Target) -> list[NDArray[Any]]:
        """Return memory for a chunk, which the thread reuses."""
        memory: dict[str, list[NDArray[Any]]] = self._local.__dict__
        if target.array not in memory:
            memory[target.array] = self._chunks.blank(target)
        return memory[target.array]

    def _rows(self, layers: Selection) -> list[int]:
        """Return the chosen layers, which are named by their numbers."""
        if layers is None or isinstance(layers, slice):
            return [*self.layers[layers or slice(None)]]
        chosen = [int(layer) for layer in np.atleast_1d(layers)]
        for layer in chosen:
            if layer not in self.layers:
                raise ValueError(
                    f"layers = {layer}: is not measured; measured are {ranges(self.layers)}"
                )
        return chosen

    def _parts(self, places: NDArray[np.intp]) -> Iterator[_Part]:
        """Yield the chunks that have any of the chosen tokens."""
        size = self._run.layout.chunk_tokens
        of_chunk = places // size
        for chunk in np.unique(of_chunk).tolist():
            found = np.flatnonzero(of_chunk == chunk)
            to, at = _as_slice(found), _as_slice(places[found] - chunk * size)
            whole = isinstance(to, slice) and isinstance(at, slice) and at == slice(0, size)
            yield _Part(chunk, to, at, whole)


def _indices(name: str, chosen: Selection, length: int) -> NDArray[np.intp]:
    """Return the chosen indices of an axis.

    Raises:
        ValueError: an index is not on the axis.
    """
    if chosen is None or isinstance(chosen, slice):
        return np.arange(length)[chosen or slice(None)]
    indices = np.atleast_1d(np.asarray(chosen, np.intp))
    for index in indices[(indices < -length) | (indices >= length)][:1].tolist():
        raise ValueError(f"{name} = {index}: there are {length:,}; take 0 to {length - 1}")
    return indices % length


def _as_slice(indices: NDArray[np.intp]) -> slice | NDArray[np.intp]:
    """Return consecutive indices as a slice, which copies faster."""
    first = int(indices[0])
    if np.array_equal(indices, np.arange(first, first + len(indices))):
        return slice(first, first + len(indices))
    return indices
