"""Verification of records by their checksums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlier_atlas.checkpoint.source import ARCHITECTURES, DIGESTS
from outlier_atlas.files import DamagedFileError, check_record, read_record
from outlier_atlas.inputs import FOLDER as INPUTS
from outlier_atlas.job_metrics import FOLDER as MEASURED
from outlier_atlas.store.run import Run


@dataclass(frozen=True)
class Records:
    """The records of a run.

    Attributes:
        run: the run.
        tokens_inputs: the record of the inputs of the tokens.
        manifests: manifests of the extraction jobs, layer group by layer group.
        datasets: records of fetched documents of hub datasets, and of tokens that runs share. The
            documents or tokens are in the same folder as the records.
        outputs: records of the products of rules (`products.py`).
        detected: an output of detection; if it is missing, detection runs again.
        ablated: an output of the ablation stage; if it is missing, the stage runs again.
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
        """Return the records of a run, given paths as text.

        Args:
            records: folder of the run as `run`, paths of its `model`, `store`, `tokens` and
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
    """Return the contents of a record; None if it is missing or damaged."""
    try:
        return read_record(record)
    except (OSError, DamagedFileError):
        return None


def own_records(records: Records) -> Iterator[str]:
    """Remove damaged records, and yield a line for each.

    Other functions compare the records of array metadata, of the ablation stage and of outputs with
    the files that they describe.
    """
    run = records.run
    paths = [run.model_record, run.tokens_record, run.store_record, *records.manifests]
    paths += [run.layer_groups_record, *records.datasets]
    paths += sorted(run.input_records.glob("*.json"))
    for folder in (INPUTS, DIGESTS, ARCHITECTURES):
        paths += sorted((run.resources / folder).glob("*.json"))
    for measured in (run.measured, run.resources / MEASURED):
        paths += sorted(measured.rglob("*.json"))
    for path in filter(Path.exists, paths):
        try:
            check_record(path)
        except DamagedFileError as damage:
            path.unlink()
            yield str(damage)


def run_again(output: Path | None) -> None:
    """Remove an output so that its rule, whose other files are damaged, runs again."""
    if output is not None:
        output.unlink(missing_ok=True)
