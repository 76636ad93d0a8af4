"""Verification of records by their own checksums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        manifests: the manifests of the extraction jobs, layer group by layer group.
        datasets: the records of fetched documents of hub datasets, which lie next to the documents.
        outputs: the records of what rules have made (`products.py`).
        detected: a file that detection makes; without it detection runs again.
        ablated: a file that the ablation stage makes; without it the stage runs again.
    """

    run: Run
    manifests: Sequence[Path]
    datasets: Sequence[Path] = ()
    outputs: Sequence[Path] = ()
    detected: Path | None = None
    ablated: Path | None = None


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
    paths = [run.model_record, run.tokens_record, run.heldout_record, run.store_record]
    paths += [*records.manifests, run.layer_groups_record, *records.datasets]
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
