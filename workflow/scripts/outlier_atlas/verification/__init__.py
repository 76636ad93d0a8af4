"""Verification of all files of a run against their records, byte by byte.

Each damaged file is named and removed, or a file is removed that makes its rule run again. The same
`snakemake` command then recomputes only what is damaged. Verification computes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from outlier_atlas.console import NOTICE
from outlier_atlas.extraction.work import Work
from outlier_atlas.verification.inputs import inputs
from outlier_atlas.verification.outputs import ablation, outputs
from outlier_atlas.verification.records import Records, own_records
from outlier_atlas.verification.store import store

__all__ = ["Records", "verify"]

log = logging.getLogger(__name__)


def verify(records: Records, threads: int) -> None:
    """Log a line for each damage in a run, and prepare its repair by the next run.

    Raises:
        ValueError: something is damaged, or the run does not exist.
    """
    folder = records.run.folder
    if not records.run.store_record.exists() and records.run.known_layout() is None:
        raise ValueError(f"{folder}: there is no store yet, so nothing to verify")
    faults = list(_faults(records, threads))
    for fault in faults:
        log.error("%s", fault)
    if faults:
        noun = "file" if len(faults) == 1 else "files"
        raise ValueError(
            f"{folder}: {len(faults)} damaged {noun} or chunks, all named above; run the same "
            f"snakemake command without `verify`: what is named is made again, and nothing else"
        )
    log.log(
        NOTICE,
        "%s: the model, the tokens, every chunk, every summary and every record are what was "
        "written", folder,
    )  # fmt: skip


def _faults(records: Records, threads: int) -> Iterator[str]:
    """Yield a line for each damage; the damaged file is removed before its line is yielded."""
    # Read records first that may be removed below.
    run = records.run
    layout, model = run.known_layout(), run.known_model_fingerprint()
    yield from own_records(records)
    yield from inputs(records)
    yield from outputs(records)
    if layout is None:
        yield (
            f"{run.folder}: what its store should hold is not known until {run.store_record} is "
            f"made again; run `verify` again then"
        )
        return
    tokens = run.known_tokens()
    whole = Work.of(run, 0, 0) if tokens and model else None
    yield from store(records, whole, threads)
    yield from ablation(records, layout, model)
