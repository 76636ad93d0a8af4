"""The residual streams and losses of variants, on disk: each there whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap, write_array_header_1_0
from numpy.typing import NDArray

from outlier_atlas.ablation.schedule import Place
from outlier_atlas.files import replacing, write_all


class Streams:
    """The files of one set of held-out tokens; memory is that of the rows that are looked at.

    Args:
        folder: of the stage, in the run's folder.
        fingerprint: of all that they depend on besides the variant; what lies under another one
            is removed.
        groups: number of layer groups.
        tokens: number of held-out tokens.
    """

    def __init__(self, folder: Path, fingerprint: str, groups: int, tokens: int) -> None:
        for other in folder.glob("*"):
            if other.name != fingerprint:
                shutil.rmtree(other)
        self._folder, self._groups, self._tokens = folder / fingerprint, groups, tokens

    def there(self) -> set[Place]:
        """What lies on disk."""
        names = [path.stem.split("-") for path in self._folder.glob("[!.]*-*.npy")]
        return {(key, int(boundary)) for key, boundary in names}

    @contextmanager
    def writing(self, place: Place, width: int) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
        """Takes the rows (token, byte) of a place, in their order; it is there when the block ends.

        Raises:
            OSError: the disk is full; in mapped memory a signal would end the process.
        """
        described = {"descr": "|u1", "fortran_order": False, "shape": (self._tokens, width)}
        with replacing(self._path(place)) as temporary, temporary.open("wb", buffering=0) as file:
            write_array_header_1_0(file, described)
            yield lambda rows: write_all(file, rows.tobytes())

    def read(self, place: Place, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Tokens `start` to `stop` of a place, (token, channel)."""
        rows = open_memmap(self._path(place), mode="r")
        return torch.from_numpy(np.array(rows[start:stop])).view(dtype)

    def delete(self, place: Place) -> None:
        """Remove a place that was read."""
        self._path(place).unlink(missing_ok=True)

    def delete_streams(self) -> None:
        """Remove everything but losses."""
        for place in self.there():
            if place[1] < self._groups:
                self.delete(place)

    def losses(self, key: str) -> NDArray[np.float32]:
        """The losses of a variant, (token,)."""
        return self.read((key, self._groups), 0, self._tokens, torch.float32)[:, 0].numpy()

    def _path(self, place: Place) -> Path:
        key, boundary = place
        return self._folder / f"{key}-{boundary}.npy"


def bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """The bytes (token, byte) of a tensor (token, channel)."""
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
