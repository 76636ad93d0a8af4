"""Records of the time that each job took, phase by phase.

The job of a rule writes its record at its end, next to the records of `job_metrics`. Records have
times and names of machines, so nothing is compared with them and no rule has them as inputs. A
record is of the last execution that did the job's work: a job that found everything done keeps it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from outlier_atlas.files import read_record, write_record
from outlier_atlas.job_metrics import FOLDER as MEASURED
from outlier_atlas.machine import machine
from outlier_atlas.phases import CLOCK, WAIT

FOLDER = f"{MEASURED}/jobs"
"""Folder of the records, relative to the folder of a run or of the files that runs share."""

IDLE = "idle"
"""Fact of a job that found all of its work done."""


@dataclass(frozen=True)
class JobTimes:
    """The time of one execution of a job.

    Attributes:
        rule: name of the rule.
        job: name of the job, which is that of its log.
        started: start of the process, in seconds since 1970.
        wall: seconds from the start of the process to the record.
        cpu: CPU seconds of all threads.
        main: seconds of the main thread by phase; they add up to `wall`.
        threads: seconds of the other threads by phase.
        bytes_read, bytes_written: bytes of the system calls of the process; None if the system does
            not count them.
        cores: number of threads that the job may use.
        machine: the machine (`machine.machine`).
        facts: facts about the job's work: device, dtype, model, layers, tokens, sizes.
        inputs, outputs: paths of the files of the rule.
    """

    rule: str
    job: str
    started: float
    wall: float
    cpu: float
    main: Mapping[str, float]
    threads: Mapping[str, float]
    bytes_read: int | None
    bytes_written: int | None
    cores: int
    machine: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @property
    def ended(self) -> float:
        """End of the job, in seconds since 1970."""
        return self.started + self.wall

    @property
    def busy(self) -> float:
        """Seconds without those in which the job waited for other jobs."""
        return self.wall - self.main[WAIT]


def measured(
    rule: str, job: str, cores: int, inputs: Iterable[Any] = (), outputs: Iterable[Any] = ()
) -> JobTimes:
    """Return the times of this process until now; call this in the main thread.

    Args:
        rule: name of the rule.
        job: name of the job.
        cores: number of threads that the job may use.
        inputs, outputs: files of the rule.
    """
    main, threads = CLOCK.so_far()
    wall = sum(main.values())
    read, written = _bytes()
    return JobTimes(
        rule=rule, job=job, started=time.time() - wall, wall=wall, cpu=time.process_time(),
        main=main, threads=threads, bytes_read=read, bytes_written=written, cores=cores,
        machine=machine(), facts=dict(CLOCK.facts), inputs=_paths(inputs), outputs=_paths(outputs),
    )  # fmt: skip


def _paths(files: Iterable[Any]) -> tuple[str, ...]:
    return tuple(os.path.normpath(str(file)) for file in files)


def _bytes() -> tuple[int | None, int | None]:
    try:
        lines = Path("/proc/self/io").read_text("ascii").splitlines()
        counts = {name: int(value) for name, _, value in (line.partition(":") for line in lines)}
        return counts["rchar"], counts["wchar"]
    except (OSError, ValueError, KeyError):
        return None, None


def write(folder: Path, times: JobTimes) -> None:
    """Write the record of a job, if its disk allows: no job fails for it.

    Args:
        folder: folder of the run, or of the files that runs share.
        times: the times of the job.
    """
    path = folder / FOLDER / f"{times.job}.json"
    if times.facts.get(IDLE) and path.exists():
        return
    with suppress(OSError):
        write_record(path, asdict(times))


def records(folder: Path) -> list[JobTimes]:
    """Return the readable records of a folder, in the order of their starts."""
    found = (read(path) for path in sorted((folder / FOLDER).glob("*.json")))
    return sorted((times for times in found if times), key=lambda times: times.started)


def read(path: Path) -> JobTimes | None:
    """Return a record; None if it is missing, damaged or of another version."""
    try:
        times = JobTimes(**read_record(path))
        return replace(times, inputs=tuple(times.inputs), outputs=tuple(times.outputs))
    except (ValueError, TypeError, OSError):
        return None


def of_job(snakemake: Any) -> JobTimes:
    """Return the times until now of the job that this process runs.

    Args:
        snakemake: the `snakemake` object of a rule's script.
    """
    job = Path(str(snakemake.log[0])).stem
    rule = job.partition(".")[0]  # a rule may have several names, its log has one
    return measured(rule, job, snakemake.threads, list(snakemake.input), list(snakemake.output))


def behind(last: JobTimes, run: Path, shared: Path) -> list[JobTimes]:
    """Return a job and all jobs that it depends on through files, by their starts.

    Args:
        last: the job.
        run: folder of its run.
        shared: folder of the files that runs share.
    """
    others = [times for times in (*records(run), *records(shared)) if times.job != last.job]
    found, new = [last], [last]
    while new:
        read_files = {file for times in new for file in times.inputs}
        new = [times for times in others if not read_files.isdisjoint(times.outputs)]
        others = [times for times in others if read_files.isdisjoint(times.outputs)]
        found += new
    return sorted(found, key=lambda times: times.started)


def keep_only(run: Path, rule: str, jobs: Iterable[str]) -> None:
    """Remove the records of a rule's jobs of an earlier division of a run.

    Args:
        run: folder of the run.
        rule: name of the rule.
        jobs: names of the rule's jobs that the run is divided into now.
    """
    names = {f"{rule}.{job}" for job in jobs}
    paths = {path.stem: path for path in (run / FOLDER).glob(f"{rule}.*.json")}
    for job in paths.keys() - names if names & paths.keys() else ():
        paths[job].unlink(missing_ok=True)
