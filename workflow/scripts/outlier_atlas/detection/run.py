"""The detection stage: from the store to the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outlier_atlas import tables
from outlier_atlas.data.tokens import RECORD, TokenStore
from outlier_atlas.detection.criteria import criteria
from outlier_atlas.detection.findings import findings
from outlier_atlas.detection.perplexity import perplexity
from outlier_atlas.detection.scan import scan
from outlier_atlas.files import read_record
from outlier_atlas.measured import keep_only
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.commits import COMMITS, Commits, Rows
from outlier_atlas.store.fingerprints import Fingerprints
from outlier_atlas.store.layout import Layout
from outlier_atlas.store.repair import damaged, give_up, look_again
from outlier_atlas.store.shape import clear_up
from outlier_atlas.store.targets import DamagedChunkError


def detect(
    settings: Mapping[str, Any],
    run: Path,
    store_record: Path,
    tokens: Path,
    model_record: Path,
    folder: Path,
    threads: int,
    manifests: Sequence[Path] = (),
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
        manifests: of the extraction jobs.

    Raises:
        ValueError: the store or the tokens are damaged, rows of the store do not count, or sites do
            not fit a criterion.
    """
    detection = DetectionSettings.model_validate(settings)
    for manifest in manifests:
        read_record(manifest)
    layout = Layout.from_record(read_record(store_record))
    store = TokenStore.recorded(tokens, run / RECORD)
    defined = criteria(detection, layout.sites)
    model = str(read_record(model_record)["fingerprint"])
    fingerprints = Fingerprints(layout, store.token_ids, store.sequence_starts, model)
    commits = Commits.load(run / COMMITS)
    _check_committed(run, layout, commits, fingerprints)
    arrays = Arrays(run, layout, fingerprints.counted(commits))
    try:
        result = scan(arrays, layout, store, detection, defined, threads)
        losses = perplexity(arrays, layout, store)
    except DamagedChunkError as damage:
        # All of it at once: to find and to repair one after the other takes a run for each.
        raise give_up(run, arrays, list(damaged(arrays, layout, threads)) or [damage]) from damage
    for table, columns in findings(result, store, detection, defined):
        tables.write(folder, table, columns)
    tables.write(folder, tables.PERPLEXITY, losses)
    clear_up(run, layout)
    keep_only(run, [manifest.stem for manifest in manifests])


def _check_committed(
    run: Path, layout: Layout, commits: Commits, fingerprints: Fingerprints
) -> None:
    """Nothing is counted that no commit stands for: what lies in an array proves nothing."""
    groups = range(len(layout.layer_groups))
    targets = [target for group in groups for target in layout.measured(group)]
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
