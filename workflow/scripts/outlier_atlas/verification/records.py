"""Where the records of a run lie, and their own checksums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlier_atlas.checkpoint.source import DIGESTS
from outlier_atlas.data.records import HELDOUT, RECORD
from outlier_atlas.extraction.choice import CHOICE
from outlier_atlas.files import DamagedFileError, check_record, read_record
from outlier_atlas.inputs import FOLDER as INPUTS
from outlier_atlas.job_metrics import MEASURED


@dataclass(frozen=True)
class Records:
    """Where the records of a run lie.

    Attributes:
        run: its folder.
        model: record of its model; `resources` is the folder that it is relative to.
        tokens: its token store.
        heldout: the held-out tokens, where they are asked for.
        store: record of its store.
        manifests: of its extraction jobs, layer group by layer group.
        datasets: records of what was fetched of hub datasets; the documents of each lie next to it.
        outputs: records of what rules have made (`products.py`).
        detected: a file that detection makes: once it is gone, detection runs again.
        ablated: the same of the ablation stage.
    """

    run: Path
    model: Path
    resources: Path
    tokens: Path
    heldout: Path
    store: Path
    manifests: Sequence[Path]
    datasets: Sequence[Path] = ()
    outputs: Sequence[Path] = ()
    detected: Path | None = None
    ablated: Path | None = None


def known(record: Path) -> dict[str, Any] | None:
    """What a record says; None where it is missing or damaged."""
    try:
        return read_record(record)
    except (OSError, DamagedFileError):
        return None


def own_records(records: Records) -> Iterator[str]:
    """The records that are not what was written; those of the arrays' metadata, of the ablation
    stage and of outputs are left to who knows what they describe."""
    run = records.run
    paths = [records.model, run / RECORD, run / HELDOUT, records.store, *records.manifests]
    paths += [run / CHOICE]
    paths += [*records.datasets, *sorted((run / "manifests" / INPUTS).glob("*.json"))]
    for folder in (INPUTS, DIGESTS):
        paths += sorted((records.resources / folder).glob("*.json"))
    paths += sorted((run / MEASURED).glob("*.json"))
    for path in filter(Path.exists, paths):
        try:
            check_record(path)
        except DamagedFileError as damage:
            path.unlink()
            yield str(damage)


def run_again(output: Path | None) -> None:
    """Have a rule run again, whose other files were damaged."""
    if output is not None:
        output.unlink(missing_ok=True)
