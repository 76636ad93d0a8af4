"""Conventions of a job and its Snakemake for the terminal that they share."""

from __future__ import annotations

import logging
import os
from typing import TextIO

STAGES = "OUTLIER_ATLAS_STAGES"
"""Environment variable of jobs whose Snakemake shows stages and reads progress from their logs."""

QUIET = "quiet"
"""Value of `STAGES` if only warnings and errors are shown."""

NOTICE = 25
"""Level of log messages, above INFO, that the terminal shows in addition to stages."""

PROGRESS = "outlier_atlas.progress"
"""Name of the logger for a job's progress."""

CLEAR = "\r\x1b[K"
"""Sequence that clears the line of the cursor, which may show the progress of other jobs."""


def shows_stages() -> bool:
    """Return whether the Snakemake that started this job shows stages."""
    return bool(os.environ.get(STAGES))


def least_level() -> int:
    """Return the lowest level of the messages that a job shows on the terminal."""
    if not shows_stages():
        return logging.INFO
    return logging.WARNING if os.environ[STAGES] == QUIET else NOTICE


def redraws(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that can clear a line."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def clearing(stream: TextIO) -> str:
    """Return the prefix of a job's messages: `CLEAR` if the line may show progress."""
    return CLEAR if shows_stages() and redraws(stream) else ""
