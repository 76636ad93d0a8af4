"""Whether the weights on this machine are still those that the run knows by their record.

To read a large checkpoint again for every job would take longer than the job. A file that has the
size and the time that it had when it was last read is taken for the same; any other is read. Sizes
and times lie beside the record, not in it: it holds no time.
"""

from __future__ import annotations

from pathlib import Path

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
        self._folder = locate(described, resources)
        self._sums: dict[str, str] = described["sums"]
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
        """Read all of them.

        Raises:
            ChangedWeightsError: a file is another one.
        """
        self._read(list(self._sums))

    def _read(self, names: list[str]) -> None:
        for name in names:
            path = self._folder / name
            if not path.is_file() or sha256(path) != self._sums[name]:
                raise ChangedWeightsError(self._record, path)
