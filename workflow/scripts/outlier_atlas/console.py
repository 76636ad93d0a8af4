"""What a job and its Snakemake agree on about the terminal that they share."""

from __future__ import annotations

import logging
import os
from typing import TextIO

STAGES = "OUTLIER_ATLAS_STAGES"
"""Environment variable of jobs whose Snakemake shows stages: it reads progress in their logs."""

QUIET = "quiet"
"""Value of `STAGES` where only warnings and errors are shown."""

NOTICE = 25
"""Level of log messages, above INFO, that the terminal shows next to stages."""

PROGRESS = "outlier_atlas.progress"
"""Name of the logger of a job's progress."""

CLEAR = "\r\x1b[K"
"""Clears the line that the cursor is in: it may hold the progress of other jobs."""


def shows_stages() -> bool:
    """Return whether the Snakemake that started this job shows stages."""
    return bool(os.environ.get(STAGES))


def least_level() -> int:
    """Return the level of the messages that a job shows on the terminal."""
    if not shows_stages():
        return logging.INFO
    return logging.WARNING if os.environ[STAGES] == QUIET else NOTICE


def redraws(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that can clear a line."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def clearing(stream: TextIO) -> str:
    """Return what a job writes before a message: `CLEAR` where the line may hold progress."""
    return CLEAR if shows_stages() and redraws(stream) else ""
