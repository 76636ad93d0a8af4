"""What rules have made of a run's tokens and arrays: tables, figures, pages, ablation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from outlier_atlas import products
from outlier_atlas.ablation.streams import Streams
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.files import DamagedFileError
from outlier_atlas.store.layout import Layout
from outlier_atlas.verification.records import Records, run_again


def outputs(records: Records) -> Iterator[str]:
    """The files that are not what the records of outputs have, and damaged records of outputs."""
    for record in filter(Path.exists, records.outputs):
        for damage in products.damaged(record):
            damage.path.unlink()
            yield str(damage)


def ablation(records: Records, layout: Layout, model: str | None) -> Iterator[str]:
    """What the ablation stage keeps and is not what was written."""
    try:
        heldout = TokenStore.open(records.run.heldout_file)
    except DamagedFileError:
        return  # missing, or damaged and named
    if model is None:
        return
    for damage in Streams(records.run, layout, model, heldout).damaged():
        damage.path.unlink()
        run_again(records.ablated)
        yield f"{damage.path}: damaged ({damage.cause}); ablation makes it again"
