"""What every rule's script shares: its log, and the one line that a user's mistake ends in."""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

# Snakemake appends this folder to the path; a library that is installed from elsewhere comes first.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from outlier_atlas import inputs, products, stopping, threads
from outlier_atlas.console import NOTICE, clearing, least_level
from outlier_atlas.files import DamagedFileError, described
from outlier_atlas.locks import LOCKS, job_lock
from outlier_atlas.sanitize import VisibleFormatter


def run(main: Callable[[Any], None], snakemake: Any) -> None:
    """Run a rule's script.

    The log has everything, traces too; the terminal has what concerns the user. `ValueError` and
    `OSError` are the user's to mend: one line and exit status 1. Anything else is ours, and the
    line says so. `OUTLIER_ATLAS_TRACEBACK=1` shows the trace on the terminal as well. Neither has
    a character that a terminal would obey, nor a secret of the environment. A signal stops the
    job as `stopping` describes, with the exit status 128 + signal.

    The job holds its lock from here on. `main` imports what it needs itself, so that the seconds
    that torch takes pass under the lock: another command sees that the job is at work.

    Args:
        main: takes the `snakemake` object.
        snakemake: as Snakemake hands it to a script.
    """
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
    try:
        lock = path.parents[1] / LOCKS / path.stem
        stopping.listen()
        threads.require(snakemake.threads)
        with job_lock(lock, log.warning):
            _run(main, snakemake)
    except (SystemExit, stopping.Stopped):
        raise
    except BaseException as error:  # libraries in Rust raise what is no `Exception`
        level = logging.WARNING if os.environ.get("OUTLIER_ATLAS_TRACEBACK") else logging.DEBUG
        log.log(level, "%s", traceback.format_exc().rstrip())
        stopping.raise_again()
        log.error("%s: %s", snakemake.rule, _line(error, str(snakemake.log[0])))
        if isinstance(error, DamagedFileError):
            error.path.unlink(missing_ok=True)  # Snakemake makes a missing file again
        return True
    return False


def _run(main: Callable[[Any], None], snakemake: Any) -> None:
    """Check what the job reads, run it, and record what it has made."""
    read, made = snakemake.input, snakemake.output
    record = read.get("inputs")
    made_from = inputs.digest_of(Path(record)) if record else ""
    listed = read.get("products", [])
    records = [listed] if isinstance(listed, str) else listed
    products.check(map(Path, records), map(Path, read))
    main(snakemake)
    if made.get("products"):
        record = Path(made.get("products"))
        products.write(record, [p for p in map(Path, made) if p != record], made_from)


def _line(error: BaseException, log: str) -> str:
    message = described(error)
    if isinstance(error, ValueError | OSError):
        return message
    if threads.refused(error):
        return threads.REFUSED
    return f"{type(error).__name__}: {message} (this should not happen; the trace is in {log})"


def _set_up_logging(path: Path) -> None:
    """Everything of ours into the log file, with times; what concerns the user to the terminal."""
    logging.addLevelName(NOTICE, "NOTICE")
    terminal = _Terminal()
    terminal.setLevel(least_level())
    terminal.setFormatter(VisibleFormatter("%(message)s"))
    file = logging.FileHandler(path, mode="w", encoding="utf-8")
    file.setFormatter(VisibleFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours = logging.getLogger("outlier_atlas")
    ours.setLevel(logging.DEBUG)
    ours.handlers = [terminal, file]
    ours.propagate = False
    logging.getLogger().handlers = [file]
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a log on a full disk: the job's own error says so


class _Terminal(logging.StreamHandler[TextIO]):
    """The terminal, which Snakemake shows the progress of all jobs on."""

    def format(self, record: logging.LogRecord) -> str:
        return clearing(self.stream) + super().format(record)
