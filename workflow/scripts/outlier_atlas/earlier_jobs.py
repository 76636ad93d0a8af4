"""Times of earlier jobs on this machine, kept to predict what later ones take.

The folder belongs to no run, so it survives the deletion of one. It is a cache: no rule has it as
an input, and nothing but predictions changes if it is deleted. There is one small file for each
rule, kind of machine and amount of work; it holds the last executions.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from outlier_atlas.files import fingerprint, read_record, write_record
from outlier_atlas.job_metrics import FOLDER as MEASURED
from outlier_atlas.job_times import IDLE, JobTimes
from outlier_atlas.machine import machine
from outlier_atlas.phases import OTHER, WAIT

FOLDER = f"{MEASURED}/earlier"
"""Folder of the files, relative to the folder of the files that runs share."""

FILE, PRODUCTS, CAPTURED, STORED = "file", "products", "captured", "stored"
TOKENS, VALUES, FILES = "tokens", "values", "files"
# Names of amounts of work; `plan.job_sizes` defines them.

EXECUTIONS = 3
"""Number of executions that are kept of equal jobs."""

MOST = 300
"""Number of files that are kept; the oldest are removed."""


@dataclass(frozen=True)
class Kind:
    """Properties of a job that its time depends on, except for the amount of its work.

    Attributes:
        rule: name of the rule.
        machine: the machine (`machine.machine`).
        device: title of the device of the forward pass; empty without one.
        dtype: dtype of the forward pass; empty without one.
        model: class of the model; empty if the job runs none.
        cores: number of threads.
    """

    rule: str
    machine: str
    device: str = ""
    dtype: str = ""
    model: str = ""
    cores: int = 1


@dataclass(frozen=True)
class EarlierJob:
    """An earlier job.

    Attributes:
        kind: what its time depends on.
        sizes: the amounts of its work, by name (`plan.job_sizes`).
        main: seconds of the main thread by phase, without those in which it waited for other jobs.
        threads: seconds of the other threads by phase.
    """

    kind: Kind
    sizes: Mapping[str, float]
    main: Mapping[str, float]
    threads: Mapping[str, float]


def remember(shared: Path, times: JobTimes) -> None:
    """Keep the times of a job that has done its work, if the disk allows.

    Two jobs that end at the same time may overwrite each other, which loses one of the executions.

    Args:
        shared: folder of the files that runs share.
        times: the times of the job.
    """
    if times.facts.get(IDLE):
        return
    facts = {name: str(times.facts.get(name, "")) for name in ("device", "dtype", "model")}
    kind = Kind(times.rule, times.machine, cores=times.cores, **facts)
    sizes = {name: float(size) for name, size in times.facts.get("sizes", {}).items()}
    key = {"kind": asdict(kind), "sizes": sizes}
    folder = shared / FOLDER
    path = folder / f"{times.rule}.{fingerprint(key)[:16]}.json"
    with suppress(OSError):
        main = {name: seconds for name, seconds in times.main.items() if name != WAIT}
        execution = {"main": main, "threads": dict(times.threads)}
        kept = [*_executions(path), execution][-EXECUTIONS:]
        write_record(path, key | {"executions": kept})
        _forget(folder)


SNAKEMAKE = "snakemake"
"""Rule of the seconds between jobs."""


def remember_pause(shared: Path, seconds: float) -> None:
    """Keep the seconds between the end of a job and the start of the next one."""
    main = {OTHER: seconds, WAIT: 0.0}
    pause = JobTimes(
        rule=SNAKEMAKE, job=SNAKEMAKE, started=0.0, wall=seconds, cpu=0.0, main=main, threads={},
        bytes_read=None, bytes_written=None, cores=1, machine=machine(),
    )  # fmt: skip
    remember(shared, pause)


def _executions(path: Path) -> list[Mapping[str, Mapping[str, float]]]:
    try:
        return list(read_record(path)["executions"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _forget(folder: Path) -> None:
    """Remove the oldest files beyond `MOST`."""
    paths = list(folder.glob("*.json"))
    if len(paths) > MOST:
        for path in sorted(paths, key=lambda path: path.stat().st_mtime)[: len(paths) - MOST]:
            path.unlink(missing_ok=True)


def earlier_jobs(shared: Path, on: str) -> list[EarlierJob]:
    """Return the earlier jobs on a machine.

    Of the executions of equal jobs, the one with the median time counts; of two the later one,
    because the first job of an installation compiles loops.

    Args:
        shared: folder of the files that runs share.
        on: the machine.
    """
    found = (_read(path) for path in sorted((shared / FOLDER).glob("*.json")))
    return [job for job in found if job is not None and job.kind.machine == on]


def _read(path: Path) -> EarlierJob | None:
    try:
        record = read_record(path)
        executions = record["executions"]
        ordered = sorted(executions, key=lambda each: sum(each["main"].values()))
        taken = executions[-1] if len(executions) < EXECUTIONS else ordered[len(ordered) // 2]
        return EarlierJob(Kind(**record["kind"]), record["sizes"], taken["main"], taken["threads"])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
