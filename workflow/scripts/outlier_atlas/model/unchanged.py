"""Whether the weights on this machine are still those that the run knows by their record.

To read a large checkpoint again for every job would take longer than the job. A file that has the
size and the time that it had when it was last read is taken for the same; any other is read. Sizes
and times lie beside the record, not in it: it holds no time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlier_atlas.files import DamagedFileError, read_record, sha256
from outlier_atlas.model.seen import recall, remember, stamps
from outlier_atlas.model.source import locate


class ChangedWeightsError(DamagedFileError):
    """A file of the model is not the one that its record describes, which is thereby void."""

    def __init__(self, record: Path, file: Path) -> None:
        super().__init__(record, "")
        self.args = (
            f"{file}: not the file that {record.name} describes: it was replaced or damaged; run "
            f"again: what depends on it is made anew",
        )


class Weights:
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
        self._seen = recall(record)

    def check(self) -> None:
        """Look at sizes and times, and read what differs.

        Raises:
            ChangedWeightsError: a file is another one.
        """
        now = stamps(self._folder, self._sums)
        changed = [name for name in self._sums if self._seen.get(name) != now[name]]
        if changed:
            self._read(changed)
            self._seen = now
            remember(self._record, now)

    def verify(self) -> None:
        """Read all of them, those of the tokenizer, too.

        Raises:
            ChangedWeightsError: a file is another one.
        """
        self._read(list(self._sums))
        self.check_tokenizer()

    def check_tokenizer(self) -> None:
        """Read the files of the tokenizer.

        Raises:
            ChangedWeightsError: a file is another one.
        """
        self._compare(self._tokenizer)

    def _read(self, names: list[str]) -> None:
        self._compare({name: self._sums[name] for name in names})

    def _compare(self, sums: Mapping[str, str]) -> None:
        for name, known in sums.items():
            path = self._folder / name
            if not path.is_file() or sha256(path) != known:
                raise ChangedWeightsError(self._record, path)


def _located(record: Path, described: Mapping[str, Any], resources: Path) -> Path:
    """The folder of a recorded model; where it is gone, its record is void."""
    try:
        return locate(described, resources)
    except ValueError as error:
        gone = DamagedFileError(record, "")
        gone.args = (str(error),)
        raise gone from error
