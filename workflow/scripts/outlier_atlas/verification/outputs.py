"""Verification of outputs of rules: tables, figures, pages and files of ablation."""

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
    """Yield a line for each output that differs from its record, and each damaged record."""
    for record in filter(Path.exists, records.outputs):
        for damage in products.damaged(record):
            damage.path.unlink()
            yield str(damage)


def ablation(records: Records, layout: Layout, model: str | None) -> Iterator[str]:
    """Yield a line for each damaged file of the ablation stage."""
    if records.run.heldout_file is None:
        return
    try:
        heldout = TokenStore.open(records.run.heldout_file)
    except DamagedFileError:
        return  # missing, or already named as damaged
    if model is None:
        return
    for damage in Streams(records.run, layout, model, heldout).damaged():
        damage.path.unlink()
        run_again(records.ablated)
        yield f"{damage.path}: damaged ({damage.cause}); ablation makes it again"
