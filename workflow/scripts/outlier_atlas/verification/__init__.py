"""Compares everything that a run has left with its records, byte by byte.

What is damaged is named and removed, or what makes its rule run again is, so that the same
`snakemake` command makes it again, and nothing else. Nothing is computed here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from outlier_atlas.console import NOTICE
from outlier_atlas.files import DamagedFileError
from outlier_atlas.store.layout import Layout
from outlier_atlas.store.metadata import DamagedMetadataError
from outlier_atlas.store.metadata import read as read_metadata
from outlier_atlas.verification.inputs import inputs, model_fingerprint, token_store
from outlier_atlas.verification.outputs import ablation, outputs
from outlier_atlas.verification.records import Records, known, own_records
from outlier_atlas.verification.store import store

__all__ = ["Records", "verify"]

log = logging.getLogger(__name__)


def verify(records: Records, threads: int) -> None:
    """Say on a line each what of a run is damaged, and have the next run make it again.

    Raises:
        ValueError: something was damaged, or there is no run.
    """
    if not records.store.exists() and _layout(records) is None:
        raise ValueError(f"{records.run}: there is no store yet, so nothing to verify")
    faults = list(_faults(records, threads))
    for fault in faults:
        log.error("%s", fault)
    if faults:
        noun = "file" if len(faults) == 1 else "files"
        raise ValueError(
            f"{records.run}: {len(faults)} damaged {noun} or chunks, all named above; run the same "
            f"snakemake command without `verify`: what is named is made again, and nothing else"
        )
    log.log(
        NOTICE,
        "%s: the model, the tokens, every chunk, every summary and every record are what was "
        "written", records.run,
    )  # fmt: skip


def _faults(records: Records, threads: int) -> Iterator[str]:
    """Each damage in a line; what is damaged is gone when its line comes."""
    # First, what is known from records that may be removed below.
    layout, model = _layout(records), model_fingerprint(records)
    yield from own_records(records)
    yield from inputs(records)
    yield from outputs(records)
    if layout is None:
        yield (
            f"{records.run}: what its store should hold is not known until {records.store} is made "
            f"again; run `verify` again then"
        )
        return
    tokens = token_store(records)
    yield from store(records, layout, tokens, model, threads)
    yield from ablation(records, layout, model)


def _layout(records: Records) -> Layout | None:
    """The layout of the store; where its record is damaged, from that of the metadata."""
    described = known(records.store)
    if described is None:
        try:
            described = read_metadata(records.run)["layout"]
        except (DamagedMetadataError, DamagedFileError, KeyError):
            return None
    return Layout.from_record(described)
