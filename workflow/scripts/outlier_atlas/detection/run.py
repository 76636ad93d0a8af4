"""The detection stage, which computes tables from the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from outlier_atlas import job_times, tables
from outlier_atlas.checkpoint.weight_integrity import CheckedWeights
from outlier_atlas.criteria.columns import Columns
from outlier_atlas.criteria.exclusion import Exclusion
from outlier_atlas.criteria.measure import Context, Measures
from outlier_atlas.criteria.measures import MEASURES
from outlier_atlas.criteria.tables import CRITERIA, DESCRIPTIONS
from outlier_atlas.detection.overview import criteria_columns
from outlier_atlas.detection.scan import scan
from outlier_atlas.detection.tiles import Source
from outlier_atlas.earlier_jobs import VALUES
from outlier_atlas.files import read_record
from outlier_atlas.job_metrics import keep_only
from outlier_atlas.phases import CLOCK, note
from outlier_atlas.settings.detection import DetectionSettings
from outlier_atlas.statistics.bootstrap import Bootstrap
from outlier_atlas.store.commits import Rows
from outlier_atlas.store.layout import Layout
from outlier_atlas.store.run import Run
from outlier_atlas.store.summaries import LostSummaryError
from outlier_atlas.store.target_chunks import DamagedChunkError

WRITERS = 4
"""Number of tables to write concurrently; writing mostly waits for the disk."""


def detect(
    settings: Mapping[str, Any],
    run: Run,
    folder: Path,
    threads: int,
    manifests: Sequence[Path],
    trust_remote_code: bool,
) -> None:
    """Detect the outliers of a run and write its tables.

    Args:
        settings: the section `detection` of the configuration.
        run: the run.
        folder: folder of the tables.
        threads: number of threads that read and decode.
        manifests: manifests of the extraction jobs.
        trust_remote_code: whether code from the checkpoint may run.

    Raises:
        ValueError: the store or the tokens are damaged, rows of the store are not committed, or the
            sites of a criterion have different numbers of channels.
    """
    detection = DetectionSettings.model_validate(settings)
    for manifest in manifests:
        read_record(manifest)
    tokens, layers = run.tokens, run.layout.layers
    note(tokens=tokens.tokens, layers=[layers[0], layers[-1]])
    special = [int(token) for token in run.tokens_description["special_ids"]]
    source = _source(detection, run, special)

    def weights_of(places: Sequence[tuple[int, int | None, int, int]]) -> Sequence[float | None]:
        from outlier_atlas.loading.weight_entries import down_projection_entries  # takes seconds

        CheckedWeights(run.model_record, run.resources).check()
        return down_projection_entries(run.model, run.resources, trust_remote_code, places)

    bootstrap = Bootstrap(tokens.sequences, **detection.bootstrap.model_dump())
    context = Context(
        detection, run.layout, tokens, special, source.exclusion, bootstrap, source.values_of,
        weights_of,
    )  # fmt: skip
    measures = Measures(MEASURES, context)
    # Each tile is summed by one thread, so that sums have the same bits on every machine. Tiles are
    # processed in parallel.
    with _giving_up_damage(source, threads):
        scan(source, measures, threads)
        for measure in measures:
            measure.read(source.arrays)
    note(sizes={VALUES: CLOCK.facts.get("summarized", 0)})
    _write(folder, detection, measures)
    run.clear_up()
    jobs = [manifest.stem for manifest in manifests]
    keep_only(run.folder, jobs)
    job_times.keep_only(run.folder, "extract_activations", jobs)


def _write(folder: Path, settings: DetectionSettings, measures: Measures) -> None:
    """Write all tables, each with the settings that its numbers depend on."""
    # Writing in threads overlaps with the computation of the next table.
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
    """Yield each table with its settings, its columns, and the sentence on excluded tokens."""
    left_out = settings.exclude.sentence
    blocks = {described.name for described in DESCRIPTIONS if described.finding}
    of_criteria = settings.model_dump(mode="json", include=blocks)
    yield CRITERIA.with_parameters(of_criteria), criteria_columns(measures), left_out
    for measure in measures:
        for table, columns in measure.tables():
            of_table = table.with_parameters(measure.parameters(table))
            yield of_table, columns, left_out if measure.excludes else ""


def _source(detection: DetectionSettings, run: Run, special: list[int]) -> Source:
    """Return the source of all summaries that detection needs, after a check of the commits.

    Args:
        detection: the section `detection` of the configuration.
        run: the run.
        special: ids of the special tokens.

    Raises:
        ValueError: rows are not committed.
    """
    layout, commits = run.layout, run.commits()
    source = Source(
        run, commits, run.arrays(commits), Exclusion.of(detection.exclude, special),
        _floors(detection, layout), detection.quantization_error,
    )  # fmt: skip
    _check_committed(source)
    return source


@contextmanager
def _giving_up_damage(source: Source, threads: int) -> Iterator[None]:
    """Remove data that turns out to be damaged in the block, and raise an error that says so."""
    run, arrays = source.run, source.arrays
    try:
        yield
    # Search for all damage, so that one further run repairs everything.
    except DamagedChunkError as damage:
        all_damaged = list(run.damaged_chunks(arrays, threads)) or [damage]
        raise run.give_up(arrays, all_damaged) from damage
    except LostSummaryError as lost:
        all_lost = list(run.lost_summaries(source.commits)) or [lost]
        raise run.give_up_summaries(all_lost) from lost


def _floors(settings: DetectionSettings, layout: Layout) -> dict[str, float]:
    """Return the smallest |x| of each site whose place must be known.

    It is the floor of the layout, or a lower threshold of a criterion.
    """
    return {
        site: float(np.float32(min(layout.floor(site), settings.least.get(site, np.inf))))
        for site in layout.sites
    }


def _check_committed(source: Source) -> None:
    """Refuse a run with rows that are not committed.

    The contents of an array do not prove that its rows were computed.

    Raises:
        ValueError: rows are not committed.
    """
    run, layout = source.run, source.run.layout
    groups = range(len(layout.layer_groups))
    targets = [target for group in groups for target in layout.measured(group)]
    for chunk in range(layout.chunks):
        rows = Rows(chunk, *layout.chunk_range(chunk))
        missing = source.commits.missing(targets, rows, run.fingerprints.of(chunk))
        if missing:
            first = min(missing)
            run.look_again()
            unreadable = ", ".join(map(str, source.commits.unreadable))
            cause = f" or their commits are damaged ({unreadable})" if unreadable else ""
            raise ValueError(
                f"{run.activations}: {first.site}, layer {first.layer}, tokens "
                f"{rows.start} to {rows.stop - 1} were never computed as configured now{cause}; "
                f"run again: only what is missing is computed"
            )
