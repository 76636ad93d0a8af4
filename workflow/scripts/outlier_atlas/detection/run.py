"""The detection stage: from the store to the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outlier_atlas import tables
from outlier_atlas.checkpoint.weight_integrity import CheckedWeights
from outlier_atlas.criteria.columns import Columns
from outlier_atlas.criteria.exclusion import Exclusion
from outlier_atlas.criteria.measure import Context, Measures
from outlier_atlas.criteria.measures import MEASURES
from outlier_atlas.criteria.tables import CRITERIA, DESCRIPTIONS
from outlier_atlas.data.records import RECORD
from outlier_atlas.data.tokens import TokenStore
from outlier_atlas.detection.overview import criteria_columns
from outlier_atlas.detection.scan import scan
from outlier_atlas.detection.tiles import Source
from outlier_atlas.files import read_record
from outlier_atlas.job_metrics import keep_only
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.store.arrays import Arrays
from outlier_atlas.store.commits import COMMITS, Commits, Rows
from outlier_atlas.store.fingerprints import Fingerprints
from outlier_atlas.store.layout import Layout
from outlier_atlas.store.repair import (
    damaged,
    give_up,
    give_up_summaries,
    look_again,
    lost_summaries,
)
from outlier_atlas.store.shape import clear_up
from outlier_atlas.store.summaries import LostSummaryError
from outlier_atlas.store.targets import DamagedChunkError

WRITERS = 4
"""Tables that are written at a time: most of it is waiting for the disk."""


def detect(
    settings: Mapping[str, Any],
    run: Path,
    store_record: Path,
    tokens: Path,
    model_record: Path,
    folder: Path,
    threads: int,
    manifests: Sequence[Path],
    resources: Path,
    trust_remote_code: bool,
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
        resources: folder that the model's record is relative to.
        trust_remote_code: whether code from the checkpoint may run.

    Raises:
        ValueError: the store or the tokens are damaged, rows of the store do not count, or sites do
            not fit a criterion.
    """
    detection = DetectionSettings.model_validate(settings)
    for manifest in manifests:
        read_record(manifest)
    store = TokenStore.recorded(tokens, run / RECORD)
    special = [int(token) for token in read_record(run / RECORD)["special_ids"]]
    model = read_record(model_record)
    source = _source(
        detection, run, read_record(store_record), store, special, str(model["fingerprint"])
    )
    layout, arrays = source.layout, source.arrays

    def weights_of(places: Sequence[tuple[int, int | None, int, int]]) -> Sequence[float | None]:
        from outlier_atlas.loading.weight_entries import down_projection_entries  # takes seconds

        CheckedWeights(model_record, resources).check()
        return down_projection_entries(model, resources, trust_remote_code, places)

    bootstrap = Bootstrap(store.sequences, **detection.bootstrap.model_dump())
    context = Context(
        detection, layout, store, special, source.exclusion, bootstrap, source.values_of, weights_of
    )
    measures = Measures(MEASURES, context)
    # One thread adds up a tile, so that its sums have the same bits everywhere; tiles side by side.
    torch.set_num_threads(1)
    with _giving_up_damage(source, threads):
        scan(source, measures, threads)
        for measure in measures:
            measure.read(arrays)
    _write(folder, detection, measures)
    clear_up(run, layout)
    keep_only(run, [manifest.stem for manifest in manifests])


def _write(folder: Path, settings: DetectionSettings, measures: Measures) -> None:
    """Write all tables, and with each the settings that its numbers depend on."""
    # Tables wait for the disk together, while the next one is made.
    with ThreadPoolExecutor(WRITERS) as writers:
        written = [
            writers.submit(tables.write, folder, table, columns, left_out)
            for table, columns, left_out in _tables(settings, measures)
        ]
        for each in written:
            each.result()


def _tables(
    settings: DetectionSettings, measures: Measures
) -> Iterator[tuple[tables.Table, Columns, str]]:
    """Each table under the settings of the run, its columns, and what its numbers leave out."""
    left_out = settings.exclude.said
    blocks = {described.name for described in DESCRIPTIONS if described.finding}
    of_criteria = settings.model_dump(mode="json", include=blocks)
    yield CRITERIA.under(of_criteria), criteria_columns(measures), left_out
    for measure in measures:
        for table, columns in measure.tables():
            of_table = table.under(measure.parameters(table))
            yield of_table, columns, left_out if measure.excludes else ""


def _source(
    detection: DetectionSettings,
    run: Path,
    store_record: Mapping[str, Any],
    store: TokenStore,
    special: list[int],
    model: str,
) -> Source:
    """The summaries of a run, of which all are there that the settings ask for.

    Args:
        store: its tokens.
        special: ids of special tokens.
        model: fingerprint of the weights.

    Raises:
        ValueError: they are not.
    """
    layout = Layout.from_record(store_record)
    fingerprints = Fingerprints(layout, store.token_ids, store.sequence_starts, model)
    commits = Commits.load(run / COMMITS)
    source = Source(
        run, Arrays(run, layout, fingerprints.counted(commits)), layout, store, fingerprints,
        commits, Exclusion.of(detection.exclude, special), _floors(detection, layout),
        detection.quantization_error,
    )  # fmt: skip
    _check_committed(source)
    return source


@contextmanager
def _giving_up_damage(source: Source, threads: int) -> Iterator[None]:
    """What proves damaged in the block no longer counts, and the error says how it is repaired."""
    run, arrays, layout = source.run, source.arrays, source.layout
    try:
        yield
    # All of it at once: to find and to repair one after the other takes a run for each.
    except DamagedChunkError as damage:
        raise give_up(run, arrays, list(damaged(arrays, layout, threads)) or [damage]) from damage
    except LostSummaryError as lost:
        all_lost = list(lost_summaries(run, source.fingerprints, source.commits)) or [lost]
        raise give_up_summaries(run, all_lost) from lost


def _floors(settings: DetectionSettings, layout: Layout) -> dict[str, float]:
    """Of each site the least |x| that the criteria ask for with its place, or the layout's own."""
    return {
        site: float(np.float32(min(layout.floor(site), settings.least.get(site, np.inf))))
        for site in layout.sites
    }


def _check_committed(source: Source) -> None:
    """Nothing is counted that no commit stands for: what lies in an array proves nothing."""
    layout, run = source.layout, source.run
    groups = range(len(layout.layer_groups))
    targets = [target for group in groups for target in layout.measured(group)]
    for chunk in range(layout.chunks):
        rows = Rows(chunk, *layout.chunk_range(chunk))
        missing = source.commits.missing(targets, rows, source.fingerprints.of(chunk))
        if missing:
            first = min(missing)
            look_again(run)
            unreadable = ", ".join(map(str, source.commits.unreadable))
            cause = f" or their commits are damaged ({unreadable})" if unreadable else ""
            raise ValueError(
                f"{run / 'activations.zarr'}: {first.site}, layer {first.layer}, tokens "
                f"{rows.start} to {rows.stop - 1} were never computed as configured now{cause}; "
                f"run again: only what is missing is computed"
            )
