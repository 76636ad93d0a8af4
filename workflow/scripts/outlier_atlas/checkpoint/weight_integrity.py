"""Whether the weights on this machine are still those that the run knows by their record.

To read a large checkpoint again for every job would take longer than the job: `digests.py` reads
again only what may have changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlier_atlas.checkpoint.source import digests_of, locate
from outlier_atlas.digests import Digests
from outlier_atlas.files import DamagedFileError, read_record


class ChangedWeightsError(DamagedFileError):
    """A file of the model is not the one that its record describes, which is thereby void."""

    def __init__(self, record: Path, file: Path) -> None:
        super().__init__(record, "")
        self.args = (
            f"{file}: not the file that {record.name} describes: it was replaced or damaged; run "
            f"again: what depends on it is recomputed",
        )


class CheckedWeights:
    """The files of a recorded model.

    Args:
        record: of the model; `resources` is the folder that it is relative to.
    """

    def __init__(self, record: Path, resources: Path) -> None:
        described = read_record(record)
        self._record = record
        self._folder = _located(record, described, resources)
        self._sums: dict[str, str] = described["sums"]
        # Records of older versions have one fingerprint of all of them.
        self._tokenizer: dict[str, str] = described.get("tokenizer_sums", {})
        self._digests = digests_of(record, resources)

    def check(self) -> None:
        """Look at sizes and times, and read what differs.

        Raises:
            ChangedWeightsError: a file is another one.
        """
        self._compare(self._sums, self._digests)

    def verify(self) -> None:
        """Read all of them, those of the tokenizer too, whatever their sizes and times are.

        Raises:
            ChangedWeightsError: a file is another one.
        """
        try:
            self._compare(self._sums | self._tokenizer, Digests())
        except ChangedWeightsError:
            self._digests.clear()  # it may have taken the file for the one that it knows
            raise

    def check_tokenizer(self) -> None:
        """Read the files of the tokenizer.

        Raises:
            ChangedWeightsError: a file is another one.
        """
        self._compare(self._tokenizer, Digests())

    def _compare(self, sums: Mapping[str, str], digests: Digests) -> None:
        found = digests.of({name: self._folder / name for name in sums})
        for name, digest in sums.items():
            if found[name] != digest:
                raise ChangedWeightsError(self._record, self._folder / name)


def _located(record: Path, described: Mapping[str, Any], resources: Path) -> Path:
    """The folder of a recorded model; where it is gone, its record is void."""
    try:
        return locate(described, resources)
    except ValueError as error:
        gone = DamagedFileError(record, "")
        gone.args = (str(error),)
        raise gone from error
