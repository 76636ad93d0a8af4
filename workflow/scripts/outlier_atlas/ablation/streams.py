"""Files of the residual streams and losses of variants, each written atomically.

A file contains the rows of all held-out tokens, followed by a checksum for each sequence. Reading
compares the rows with their checksum.
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
"""Name of the record of the versions and devices with which the files were computed."""

PLACE = re.compile(r"([^.-]+)-(\d+)\.rows")
"""File name: key of the variant, and boundary."""


class Streams:
    """The files for one set of held-out tokens; memory is the rows of one sequence.

    Args:
        run: the files of the run.
        layout: layout of the store.
        model: fingerprint of the weights.
        heldout: the held-out tokens.
    """

    def __init__(self, run: RunFiles, layout: Layout, model: str, heldout: TokenStore) -> None:
        self._groups, self._starts = len(layout.layer_groups), heldout.sequence_starts
        # The fingerprint covers everything that the files depend on, except the variant.
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
        """Remove files with another fingerprint."""
        for other in self._folder.parent.glob("*"):
            if other != self._folder:
                remove(other)

    def origins(self) -> list[Origin]:
        """Return the origins of the files; empty if an older version of the project wrote them."""
        path = self._folder / ORIGINS
        return [Origin.of(each) for each in read_record(path)["origins"]] if path.exists() else []

    def add_origin(self, origin: Origin) -> None:
        """Record the origin of further files."""
        known = sorted({*self.origins(), origin})
        described = [{VERSIONS: each.versions, DEVICE: each.device} for each in known]
        write_record(self._folder / ORIGINS, {"origins": described})

    def delete_all(self) -> None:
        """Remove all files, also of searches; the record of origins is removed last."""
        for path in sorted(self._folder.glob("*"), key=lambda path: path.name == ORIGINS):
            path.unlink()

    def there(self) -> set[Place]:
        """Return the places with a file on disk."""
        names = (PLACE.fullmatch(path.name) for path in self._folder.glob("*.rows"))
        return {(name[1], int(name[2])) for name in names if name}

    @contextmanager
    def writing(self, place: Place) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
        """Yield a function that writes the rows (token, byte) of one sequence after the other.

        The file exists once the block ends.

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
        """Return the rows of one sequence at a place, (token, channel).

        Raises:
            DamagedFileError: the file is damaged.
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
        """Compare all files on disk with their checksums, and yield each damage."""
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
        """Return the record of a variant in a layer group; None without a record.

        Raises:
            DamagedFileError: the record is damaged.
        """
        path = self._folder / f"{key}-{group}.json"
        return read_record(path) if path.exists() else None

    def write_record(self, key: str, group: int, record: Mapping[str, Any]) -> None:
        """Write the record of a variant in a layer group."""
        write_record(self._folder / f"{key}-{group}.json", record)

    def delete(self, place: Place) -> None:
        """Remove the file of a place."""
        self._path(place).unlink(missing_ok=True)

    def delete_streams(self) -> None:
        """Remove all residual streams; losses stay."""
        for place in self.there():
            if place[1] < self._groups:
                self.delete(place)

    def losses(self, key: str) -> NDArray[np.float32]:
        """Return the losses of a variant, (token,).

        Raises:
            DamagedFileError: the file is damaged.
        """
        place = (key, self._groups)
        sequences = range(len(self._starts) - 1)
        return torch.cat([self.read(place, s, torch.float32)[:, 0] for s in sequences]).numpy()

    def _checksum(self, place: Place, sequence: int, content: bytes) -> int:
        """Return a checksum of rows and their place.

        The place is included so that equal rows of another place are not accepted.
        """
        belonging = f"{self._path(place).relative_to(self._folder.parent)} {sequence}"
        return int(google_crc32c.extend(google_crc32c.value(belonging.encode()), content))

    def _path(self, place: Place) -> Path:
        key, boundary = place
        return self._folder / f"{key}-{boundary}.rows"


def bytes_of(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Return the bytes (token, byte) of a tensor (token, channel)."""
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
