"""Verification of the inputs of a run: the model, the datasets and the tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from outlier_atlas import builtin
from outlier_atlas.checkpoint.weight_integrity import CheckedWeights
from outlier_atlas.data.folder import local_files
from outlier_atlas.data.prepare import check_documents
from outlier_atlas.data.source import digests_of
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.digests import NOT_READABLE, Digests
from outlier_atlas.files import DamagedFileError
from outlier_atlas.settings.dataset import DatasetSettings
from outlier_atlas.verification.records import Records, known


def inputs(records: Records) -> Iterator[str]:
    """Yield a line for each input that differs from its record."""
    for look in _looks(records):
        try:
            look()
        except DamagedFileError as damage:
            damage.path.unlink(missing_ok=True)
            yield str(damage)


def _looks(records: Records) -> Iterator[Callable[[], object]]:
    """Yield a function for each input with a record that compares the input with the record."""
    run = records.run
    for source in builtin.PACKAGES:
        if (run.resources / builtin.path(source)).exists():
            yield partial(builtin.check, f"builtin:{source}", run.resources)
    if run.model_record.exists():
        yield lambda: CheckedWeights(run.model_record, run.resources).verify()
    yield partial(_check_dataset, records)
    for record in filter(Path.exists, records.datasets):
        if record.parent.name == "tokens":
            yield partial(TokenStore.recorded, record.with_suffix(".parquet"), record)
        else:
            yield partial(check_documents, record.with_suffix(".jsonl"), record)
    if run.tokens_record.exists():
        yield partial(TokenStore.recorded, run.tokens_file, run.tokens_record)


def _check_dataset(records: Records) -> None:
    """Read the files of a local dataset, regardless of their sizes and times.

    Raises:
        DamagedFileError: a file is not the one from which the tokens were made.
    """
    record = records.tokens_inputs
    made_from = known(record)
    if made_from is None or not made_from["files"]:
        return
    settings = DatasetSettings.model_validate(made_from["settings"]["dataset"])
    digests = Digests().of(local_files(settings))
    for name, digest in made_from["files"].items():
        if digests.get(name) not in (None, NOT_READABLE, digest):
            digests_of(settings, records.run.resources).clear()
            other = DamagedFileError(record, "")
            other.args = (
                f"{settings.source}: {name} is not the file that the tokens were made of: it was "
                f"replaced or damaged; run again: what depends on it is made again",
            )
            raise other
