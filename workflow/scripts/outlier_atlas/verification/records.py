"""Verification of records by their own checksums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlier_atlas.checkpoint.source import DIGESTS
from outlier_atlas.files import DamagedFileError, check_record, read_record
from outlier_atlas.inputs import FOLDER as INPUTS
from outlier_atlas.store.run import Run


@dataclass(frozen=True)
class Records:
    """The records of a run.

    Attributes:
        run: the run.
        tokens_inputs: the record of what the tokens are made from.
        manifests: the manifests of the extraction jobs, layer group by layer group.
        datasets: the records of fetched documents of hub datasets, and of tokens that runs share;
            the documents or tokens lie next to the records.
        outputs: the records of what rules have made (`products.py`).
        detected: a file that detection makes; without it detection runs again.
        ablated: a file that the ablation stage makes; without it the stage runs again.
    """

    run: Run
    tokens_inputs: Path
    manifests: Sequence[Path]
    datasets: Sequence[Path] = ()
    outputs: Sequence[Path] = ()
    detected: Path | None = None
    ablated: Path | None = None

    @classmethod
    def of(cls, records: Mapping[str, Any]) -> Records:
        """Return the records of a run, whose paths are given as text.

        Args:
            records: the folder of the run as `run`, the places of its `model`, `tokens` and
                `heldout` tokens, and the attributes of this class.
        """
        given = {name: _paths(text) for name, text in records.items()}
        run = Run(
            given.pop("run"),
            given.pop("model"),
            Path("resources"),
            tokens_file=given.pop("tokens"),
            heldout_file=given.pop("heldout"),
        )
        assert given.pop("store") == run.store_record, "a run's folder has the record of its store"
        return cls(run, **given)


def _paths(given: Any) -> Any:
    if isinstance(given, str):
        return Path(given)
    return None if given is None else [Path(path) for path in given]


def known(record: Path) -> dict[str, Any] | None:
    """Return the contents of a record; None where it is missing or damaged."""
    try:
        return read_record(record)
    except (OSError, DamagedFileError):
        return None


def own_records(records: Records) -> Iterator[str]:
    """Name the records that are not what was written, and remove them.

    The records of the arrays' metadata, of the ablation stage and of outputs are compared with what
    they describe, by other functions.
    """
    run = records.run
    paths = [run.model_record, run.tokens_record, run.store_record, *records.manifests]
    paths += [run.layer_groups_record, *records.datasets]
    paths += sorted(run.input_records.glob("*.json"))
    for folder in (INPUTS, DIGESTS):
        paths += sorted((run.resources / folder).glob("*.json"))
    paths += sorted(run.measured.glob("*.json"))
    for path in filter(Path.exists, paths):
        try:
            check_record(path)
        except DamagedFileError as damage:
            path.unlink()
            yield str(damage)


def run_again(output: Path | None) -> None:
    """Have a rule run again whose other files were damaged."""
    if output is not None:
        output.unlink(missing_ok=True)
