"""The detection stage: from the store to the tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlier_atlas import tables
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.detection import sinks
from outlier_atlas.detection.criteria import criteria
from outlier_atlas.detection.findings import findings
from outlier_atlas.detection.scan import scan
from outlier_atlas.files import read_record
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.store.arrays import DamagedChunkError
from outlier_atlas.store.commits import COMMITS, Commits, Rows
from outlier_atlas.store.fingerprints import Fingerprints
from outlier_atlas.store.layout import Layout, Target
from outlier_atlas.store.repair import give_up, look_again


def detect(
    settings: Mapping[str, Any],
    run: Path,
    store_record: Path,
    tokens: Path,
    model_record: Path,
    folder: Path,
    threads: int,
) -> None:
    """Find the outliers of a run and write its tables.

    Args:
        settings: the `detection` section of the configuration.
        run: folder of the run.
        store_record: the layout of its store.
        tokens: its token store.
        model_record: the record of the model.
        folder: for the tables.
        threads: that read and decode.

    Raises:
        ValueError: the store or the tokens are damaged, rows of the store do not count, or sites do
            not fit a criterion.
    """
    detection = DetectionSettings.model_validate(settings)
    layout = Layout.from_record(read_record(store_record))
    store = TokenStore.open(tokens)
    defined = criteria(detection, layout.sites, layout.sink_tokens)
    model = str(read_record(model_record)["fingerprint"])
    _check_committed(
        run, layout, Fingerprints(layout, store.token_ids, store.sequence_starts, model)
    )
    try:
        result = scan(run, layout, store, detection, defined, threads)
        sunk = sinks.attention_sinks(run, layout, store, detection.attention_sinks.threshold)
    except DamagedChunkError as damage:
        raise give_up(run, damage) from damage
    for table, columns in (
        *findings(result, store, detection, defined, sinks.sinking_heads(sunk)),
        *sinks.findings(sunk, store),
    ):
        tables.write(folder, table, columns)


def _check_committed(run: Path, layout: Layout, fingerprints: Fingerprints) -> None:
    """Nothing is counted that no commit stands for: what lies in an array proves nothing."""
    commits = Commits.load(run / COMMITS)
    targets = [Target(site, layer) for site in layout.sites for layer in layout.layers]
    for chunk in range(layout.chunks):
        rows = Rows(chunk, *layout.chunk_range(chunk))
        missing = commits.missing(targets, rows, fingerprints.of(chunk))
        if missing:
            first = min(missing)
            look_again(run)
            raise ValueError(
                f"{run / 'activations.zarr'}: {first.array}, layer {first.layer}, tokens "
                f"{rows.start} to {rows.stop - 1} were never computed as configured now; run "
                f"again: only what is missing is computed"
            )
