"""The table of the time that the jobs of a run took."""

from __future__ import annotations

from outlier_atlas.phases import (
    COMPUTE,
    COPY,
    ENCODE,
    IMPORT,
    LOAD,
    OF_THREADS,
    OTHER,
    PHASES,
    WAIT,
    WRITE,
)
from outlier_atlas.tables.table import Column, Table

MEANINGS = {
    IMPORT: "starting Python and importing modules",
    LOAD: "reading weights, the boundary before the layer group, chunks or summaries, and building "
    "the model",
    WAIT: "waiting for other jobs: for the lock of the job, or for a GPU",
    COMPUTE: "the work of the job itself: forward passes in extraction; in other jobs all that no "
    "other phase names. On a GPU the main thread does not wait for the end of an operation, so the "
    "time of the device is in the phases that wait for its results",
    COPY: "copying captured tensors from the device of the forward pass to the host; on the CPU, "
    "copying them in memory",
    ENCODE: "compressing values, summarizing values that are not stored, encoding tables",
    WRITE: "writing files, and waiting for the job's own writing threads",
    OTHER: "checks of inputs and outputs, and the plan",
}
"""Definitions of the phases."""


def _main(name: str) -> Column:
    return Column(
        f"{name}_seconds",
        "float64",
        f"Seconds of the main thread in {MEANINGS[name]}.",
        "seconds",
    )


def _of_threads(name: str) -> Column:
    return Column(
        f"threads_{name}_seconds",
        "float64",
        f"Seconds of all other threads, summed, in {MEANINGS[name].partition(':')[0]}. They "
        "overlap with the main thread and with each other, so they are no part of wall_seconds.",
        "seconds",
    )


JOB_TIMES = Table(
    "job_times",
    "Time of the jobs behind the report, as recorded when the report was rendered. A job that ran "
    "several times, because it was stopped or because its inputs changed, has the last execution "
    "that succeeded and had work to do. Jobs of shared files (fetching, tokens, weights) may have "
    "run for an earlier run. The eight columns from import_seconds to other_seconds add up to "
    "wall_seconds. Times differ from run to run, so no other table and no finding depends on "
    "them.",
    (
        Column("rule", "string", "Rule of the job."),
        Column("job", "string", "Name of the job: that of its log."),
        Column("started", "string", "Start of the process, in UTC, ISO 8601."),
        Column(
            "start_seconds", "float64",
            "Start of the process, from the start of the first job.", "seconds",
        ),
        Column(
            "wall_seconds", "float64",
            "Seconds from the start of the process to its record, which is its last act. Of "
            "render_report, to the moment when it writes this table.", "seconds",
        ),
        *map(_main, PHASES),
        *map(_of_threads, OF_THREADS),
        Column("cpu_seconds", "float64", "CPU seconds of all threads of the process.", "seconds"),
        Column(
            "predicted_seconds", "float64",
            "Of extraction jobs: the seconds that the plan predicted right before the job "
            "loaded weights, without waiting for other jobs.", "seconds",
        ),
        Column(
            "on_critical_path", "bool",
            "Whether the job is on the critical path: of all chains of jobs of which each reads a "
            "file of the one before, the one with the largest sum of wall_seconds.",
        ),
        Column(
            "after", "string",
            "The job before it on the longest chain of jobs that ends with this job; empty if it "
            "reads no file of another job.",
        ),
        Column("tokens", "int64", "Number of tokens that the job ran, in all shards.", "count"),
        Column("first_layer", "int32", "First layer that the job ran, 0-based.", "index"),
        Column("last_layer", "int32", "Last layer that the job ran, 0-based.", "index"),
        Column("device", "string", "Device of the forward pass."),
        Column("dtype", "string", "Dtype of the forward pass."),
        Column("cores", "int32", "Number of threads that Snakemake gave to the job.", "count"),
        Column("machine", "string", "Model of the CPU, and its number of cores."),
        Column(
            "bytes_read", "int64",
            "Bytes of read calls of the process, Python's own files included. Memory-mapped files, "
            "such as weights, are read without such calls. Empty if the system does not count.",
            "bytes",
        ),
        Column(
            "bytes_written", "int64",
            "Bytes of write calls of the process. Empty if the system does not count.", "bytes",
        ),
    ),
)  # fmt: skip
