"""Where the records of a run lie, and their own checksums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlier_atlas.checkpoint.source import DIGESTS
from outlier_atlas.data.records import RECORD
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
        tokens_inputs: record of what the tokens are made from.
        heldout: the held-out tokens, where there is an ablation stage; their record lies next to
            them.
        store: record of its store.
        manifests: of its extraction jobs, layer group by layer group.
        datasets: records of what was fetched of hub datasets, and of the tokens that runs share;
            the documents or tokens of each lie next to it.
        outputs: records of what rules have made (`products.py`).
        detected: a file that detection makes: once it is gone, detection runs again.
        ablated: the same of the ablation stage.
    """

    run: Path
    model: Path
    resources: Path
    tokens: Path
    tokens_inputs: Path
    heldout: Path | None
    store: Path
    manifests: Sequence[Path]
    datasets: Sequence[Path] = ()
    outputs: Sequence[Path] = ()
    detected: Path | None = None
    ablated: Path | None = None

    @classmethod
    def of(cls, records: Mapping[str, Any]) -> Records:
        """Return the records whose paths are given as text."""
        return cls(
            resources=Path("resources"), **{name: _paths(given) for name, given in records.items()}
        )


def _paths(given: Any) -> Any:
    if isinstance(given, str):
        return Path(given)
    return None if given is None else [Path(path) for path in given]


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
    paths = [records.model, run / RECORD, records.store, *records.manifests]
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
