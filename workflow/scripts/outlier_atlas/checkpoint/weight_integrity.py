"""Checks that the model files on this machine are still those that the record describes.

Reading a large checkpoint again for every job would take longer than the job. So `digests.py`
reads only the files that may have changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlier_atlas.checkpoint.source import digests_of, locate
from outlier_atlas.digests import Digests
from outlier_atlas.files import DamagedFileError, read_record


class ChangedWeightsError(DamagedFileError):
    """Error for a model file that differs from its record, which is invalid from then on."""

    def __init__(self, record: Path, file: Path) -> None:
        super().__init__(record, "")
        self.args = (
            f"{file}: not the file that {record.name} describes: it was replaced or damaged; run "
            f"again: what depends on it is recomputed",
        )


class CheckedWeights:
    """Files of a recorded model, compared with their recorded digests.

    Args:
        record: path of the model's record.
        resources: folder that the record is relative to.
    """

    def __init__(self, record: Path, resources: Path) -> None:
        entries = read_record(record)
        self._record = record
        self._folder = _located(record, entries, resources)
        self._sums: dict[str, str] = entries["sums"]
        # Records of older versions have one fingerprint for all tokenizer files.
        self._tokenizer: dict[str, str] = entries.get("tokenizer_sums", {})
        self._digests = digests_of(record, resources)

    def check(self) -> None:
        """Compare sizes and times, and read the files for which they differ.

        Raises:
            ChangedWeightsError: a file differs from its record.
        """
        self._compare(self._sums, self._digests)

    def verify(self) -> None:
        """Read all files, including the tokenizer's, regardless of their sizes and times.

        Raises:
            ChangedWeightsError: a file differs from its record.
        """
        try:
            self._compare(self._sums | self._tokenizer, Digests())
        except ChangedWeightsError:
            self._digests.clear()  # a cached digest may be that of the earlier file
            raise

    def check_tokenizer(self) -> None:
        """Read the files of the tokenizer.

        Raises:
            ChangedWeightsError: a file differs from its record.
        """
        self._compare(self._tokenizer, Digests())

    def _compare(self, sums: Mapping[str, str], digests: Digests) -> None:
        current = digests.of({name: self._folder / name for name in sums})
        for name, digest in sums.items():
            if current[name] != digest:
                raise ChangedWeightsError(self._record, self._folder / name)


def _located(record: Path, entries: Mapping[str, Any], resources: Path) -> Path:
    """Return the folder of a recorded model.

    Raises:
        DamagedFileError: the folder no longer exists, so the record is invalid.
    """
    try:
        return locate(entries, resources)
    except ValueError as error:
        damaged = DamagedFileError(record, "")
        damaged.args = (str(error),)
        raise damaged from error
