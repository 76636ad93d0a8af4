"""Shared main function of the rules' scripts: log, lock and one-line error messages."""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

# Snakemake appends this folder to the path, so an installed library would come first.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from outlier_atlas import earlier_jobs, inputs, job_times, products, stopping, threads
from outlier_atlas.compat.import_times import count_imports
from outlier_atlas.console import NOTICE, clearing, least_level
from outlier_atlas.files import DamagedFileError, described
from outlier_atlas.locks import LOCKS, job_lock
from outlier_atlas.phases import CLOCK, COMPUTE, phase, process_seconds
from outlier_atlas.preload.client import FORKED, hand_over, is_of
from outlier_atlas.sanitize import VisibleFormatter


def run(main: Callable[[Any], None], snakemake: Any) -> None:
    """Run the script of a rule.

    The log contains all messages and traces. The terminal shows messages for the user. The user can
    correct a `ValueError` or `OSError`: one line, and exit status 1. For other errors, which are
    bugs, the line says so. `OUTLIER_ATLAS_TRACEBACK=1` shows the trace on the terminal too. The
    output has no control characters and no secrets of the environment. A signal stops the job as
    `stopping` describes, with exit status 128 + signal.

    The job holds its lock from here on. `main` imports torch and other packages itself, under the
    lock, so another command sees that the job is running during the import.

    Args:
        main: main function of the script, which takes the `snakemake` object.
        snakemake: the `snakemake` object of the script.
    """
    if is_of(snakemake.rule):
        hand_over()
    CLOCK.begin(process_seconds())
    count_imports()
    try:
        failed = _failed(main, snakemake)
        stopping.finish()
    except stopping.Stopped as stopped:
        stopping.end(stopped.number)
    if failed:
        sys.exit(1)


def _failed(main: Callable[[Any], None], snakemake: Any) -> bool:
    path = Path(str(snakemake.log[0]))
    _set_up_logging(path)
    log = logging.getLogger("outlier_atlas")
    if FORKED in os.environ:
        log.debug("libraries were imported before this job began")
    try:
        lock = path.parents[1] / LOCKS / path.stem
        stopping.listen()
        threads.require(snakemake.threads)
        with job_lock(lock, log.warning):
            _run(main, snakemake)
    except (SystemExit, stopping.Stopped):
        raise
    except BaseException as error:  # libraries in Rust raise errors that are not `Exception`
        level = logging.WARNING if os.environ.get("OUTLIER_ATLAS_TRACEBACK") else logging.DEBUG
        log.log(level, "%s", traceback.format_exc().rstrip())
        stopping.raise_again()
        log.error("%s: %s", snakemake.rule, _line(error, str(snakemake.log[0])))
        if isinstance(error, DamagedFileError):
            error.path.unlink(missing_ok=True)  # Snakemake recreates a missing file
        return True
    return False


def _run(main: Callable[[Any], None], snakemake: Any) -> None:
    """Check the inputs of a job, run it, and record its products."""
    read, made = snakemake.input, snakemake.output
    record = read.get("inputs")
    made_from = inputs.digest_of(Path(record)) if record else ""
    listed = read.get("products", [])
    records = [listed] if isinstance(listed, str) else listed
    products.check(map(Path, records), map(Path, read))
    with phase(COMPUTE):
        main(snakemake)
    if made.get("products"):
        record = Path(made.get("products"))
        products.write(record, [p for p in map(Path, made) if p != record], made_from)
    if len(made):
        _record_times(snakemake)


def _record_times(snakemake: Any) -> None:
    """Record what a job took: for the report, and for predictions of later jobs."""
    times = job_times.of_job(snakemake)
    job_times.write(Path(str(snakemake.log[0])).parents[1], times)
    earlier_jobs.remember(Path("resources"), times)


def _line(error: BaseException, log: str) -> str:
    message = described(error)
    if isinstance(error, ValueError | OSError):
        return message
    if threads.refused(error):
        return threads.REFUSED
    return f"{type(error).__name__}: {message} (this should not happen; the trace is in {log})"


def _set_up_logging(path: Path) -> None:
    """Send all messages of the library to the log file, and notable messages to the terminal."""
    logging.addLevelName(NOTICE, "NOTICE")
    terminal = _Terminal()
    terminal.setLevel(least_level())
    terminal.setFormatter(VisibleFormatter("%(message)s"))
    file = logging.FileHandler(path, mode="w", encoding="utf-8")
    file.setFormatter(VisibleFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    library = logging.getLogger("outlier_atlas")
    library.setLevel(logging.DEBUG)
    library.handlers = [terminal, file]
    library.propagate = False
    logging.getLogger().handlers = [file]
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # if the disk is full, the error of the job says so


class _Terminal(logging.StreamHandler[TextIO]):
    """A handler for the terminal, on which Snakemake shows the progress of all jobs."""

    def format(self, record: logging.LogRecord) -> str:
        return clearing(self.stream) + super().format(record)
