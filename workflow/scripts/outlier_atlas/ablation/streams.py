"""The residual streams and losses of variants, on disk: each there whole or not at all.

A file has the rows of all held-out tokens, and behind them a checksum for each sequence: what is
read is compared with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray

from outlier_atlas.ablation.schedule import Place
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.files import (
    DamagedFileError,
    check_record,
    fingerprint,
    read_record,
    remove,
    replacing,
    write_all,
    write_record,
)
from outlier_atlas.store.fingerprints import NUMERICS_VERSION
from outlier_atlas.store.layout import Layout
from outlier_atlas.store.origin import DEVICE, VERSIONS, Origin
from outlier_atlas.store.run_files import RunFiles

CHECKSUM = np.dtype("<u4")
ORIGINS = "origins.json"
"""What the files were computed under, in their folder."""

PLACE = re.compile(r"([^.-]+)-(\d+)\.rows")
"""Name of a file: the key of its variant, and the boundary."""


class Streams:
    """The files of one set of held-out tokens; memory is that of a sequence's rows.

    Args:
        run: the files of the run.
        layout: of its store.
        model: fingerprint of the weights.
        heldout: the held-out tokens.
    """

    def __init__(self, run: RunFiles, layout: Layout, model: str, heldout: TokenStore) -> None:
        self._groups, self._starts = len(layout.layer_groups), heldout.sequence_starts
        # Stands for all that they depend on, except the variant.
        current = fingerprint(
            {
                "model": model,
                "dtype": layout.dtype,
                "numerics": NUMERICS_VERSION,
                "layer_groups": self._groups,
                "tokens": [heldout.token_ids.tolist(), self._starts.tolist()],
            }
        )
        self._folder = run.ablation / current

    def delete_others(self) -> None:
        """Remove what lies under another fingerprint."""
        for other in self._folder.parent.glob("*"):
            if other != self._folder:
                remove(other)

    def origins(self) -> list[Origin]:
        """Return what the files were computed under; nothing of older versions of the project."""
        path = self._folder / ORIGINS
        return [Origin.of(each) for each in read_record(path)["origins"]] if path.exists() else []

    def add_origin(self, origin: Origin) -> None:
        """Record what further files are computed under."""
        known = sorted({*self.origins(), origin})
        described = [{VERSIONS: each.versions, DEVICE: each.device} for each in known]
        write_record(self._folder / ORIGINS, {"origins": described})

    def delete_all(self) -> None:
        """Remove all files, those of the searches too; the record of their origins last."""
        for path in sorted(self._folder.glob("*"), key=lambda path: path.name == ORIGINS):
            path.unlink()

    def there(self) -> set[Place]:
        """Return the places whose files are on the disk."""
        names = (PLACE.fullmatch(path.name) for path in self._folder.glob("*.rows"))
        return {(name[1], int(name[2])) for name in names if name}

    @contextmanager
    def writing(self, place: Place) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
        """Write the rows (token, byte) of a place, a sequence at a time, in their order; the file
        is there when the block ends.

        Raises:
            OSError: the disk is full.
        """
        checksums: list[int] = []
        with replacing(self._path(place)) as temporary, temporary.open("wb", buffering=0) as file:

            def put(rows: NDArray[np.uint8]) -> None:
                content = rows.tobytes()
                write_all(file, content)
                checksums.append(self._checksum(place, len(checksums), content))

            yield put
            write_all(file, np.array(checksums, CHECKSUM).tobytes())

    def read(self, place: Place, sequence: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a sequence's tokens of a place, (token, channel).

        Raises:
            DamagedFileError: they are not what was written.
        """
        path, tokens, count = self._path(place), int(self._starts[-1]), len(self._starts) - 1
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size - count * CHECKSUM.itemsize
            if size <= 0 or size % tokens:
                raise DamagedFileError(path, "it is cut short")
            width = size // tokens
            start, stop = (width * int(token) for token in self._starts[sequence : sequence + 2])
            file.seek(start)
            content = file.read(stop - start)
            file.seek(size)
            checksums = np.frombuffer(file.read(), CHECKSUM)
        if checksums[sequence] != self._checksum(place, sequence, content):
            raise DamagedFileError(path, "its checksum does not agree")
        rows = np.frombuffer(content, np.uint8).reshape(-1, width).copy()
        return torch.from_numpy(rows).view(dtype)

    def damaged(self) -> Iterator[DamagedFileError]:
        """Compare all that lies on disk with its checksums."""
        for path in sorted(self._folder.glob("[!.]*.json")):
            try:
                check_record(path)
            except DamagedFileError as damage:
                yield damage
        for place in sorted(self.there()):
            try:
                for sequence in range(len(self._starts) - 1):
                    self.read(place, sequence, torch.uint8)
            except DamagedFileError as damage:
                yield damage

    def record(self, key: str, group: int) -> dict[str, Any] | None:
        """Return what was measured of a variant in a layer group; None where nothing was.

        Raises:
            DamagedFileError: it is not what was written.
        """
        path = self._folder / f"{key}-{group}.json"
        return read_record(path) if path.exists() else None

    def write_record(self, key: str, group: int, record: Mapping[str, Any]) -> None:
        """Keep what was measured of a variant in a layer group."""
        write_record(self._folder / f"{key}-{group}.json", record)

    def delete(self, place: Place) -> None:
        """Remove a place that was read."""
        self._path(place).unlink(missing_ok=True)

    def delete_streams(self) -> None:
        """Remove everything but losses."""
        for place in self.there():
            if place[1] < self._groups:
                self.delete(place)

    def losses(self, key: str) -> NDArray[np.float32]:
        """Return the losses of a variant, (token,).

        Raises:
            DamagedFileError: they are not what was written.
        """
        place = (key, self._groups)
        sequences = range(len(self._starts) - 1)
        return torch.cat([self.read(place, s, torch.float32)[:, 0] for s in sequences]).numpy()

    def _checksum(self, place: Place, sequence: int, content: bytes) -> int:
        """Return the checksum of rows and their place: equal rows of another place have another."""
        belonging = f"{self._path(place).relative_to(self._folder.parent)} {sequence}"
        return int(google_crc32c.extend(google_crc32c.value(belonging.encode()), content))

    def _path(self, place: Place) -> Path:
        key, boundary = place
        return self._folder / f"{key}-{boundary}.rows"


def bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Return the bytes (token, byte) of a tensor (token, channel)."""
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
