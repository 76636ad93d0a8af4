"""The progress of a job: in its log, and as a bar or lines if it runs without Snakemake."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Self

from tqdm import tqdm

from outlier_atlas.console import PROGRESS, shows_stages

log = logging.getLogger(PROGRESS)

FIRST_SECONDS, LAST_SECONDS = 2.0, 30.0
"""Seconds between two lines in the log: at the beginning, and in a job of hours."""
LINE_SECONDS = 15.0
"""Seconds between two lines on a screen that cannot draw a bar."""
LEAST_SHARE = 0.02
"""Share of the work from which on the remaining time is shown."""


class Progress:
    """The progress of one loop; a context manager.

    Snakemake shows the progress from the log. A script without Snakemake, or under `--verbose`,
    draws a bar itself, or prints lines if the screen is not a terminal.
    """

    def __init__(
        self, total: int, unit: str, description: str, expected: float | None = None
    ) -> None:
        self._total, self._unit, self._description = total, unit, description
        self._expected = expected
        self._done = 0
        self._started = self._reported = time.monotonic()
        bar = not shows_stages() and sys.stderr.isatty()
        self._lines = not shows_stages() and not bar
        self._bar: tqdm[Any] | None = None
        if bar:
            self._bar = tqdm(
                total=total,
                unit=unit,
                unit_scale=unit == " tokens",
                desc=description,
                mininterval=0.5,
                dynamic_ncols=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, amount: int = 1) -> None:
        """Add the work that was done since the last update."""
        self._done += amount
        if self._bar is not None:
            self._bar.update(amount)
        now = time.monotonic()
        interval = min(max(FIRST_SECONDS, (now - self._started) / 50), LAST_SECONDS)
        if now - self._reported >= (LINE_SECONDS if self._lines else interval):
            self._reported = now
            log.log(logging.INFO if self._lines else logging.DEBUG, "%s", self.text(now))

    def text(self, now: float) -> str:
        """Return the progress at a time: `layers 0 to 9: 34 % of 8,192 tokens, 1,423 tokens/s`."""
        rate = self._done / max(now - self._started, 1e-9)
        left = (self._total - self._done) / rate if rate else 0.0
        share = self._done / self._total if self._total else 1.0
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        # The first steps include compiling and loading, so their rate predicts nothing.
        if share < LEAST_SHARE:
            left = 0.0 if self._expected is None else self._expected - (now - self._started)
        ahead = f", {_time(left)} left" if share >= LEAST_SHARE or left > 0 else ""
        return (
            f"{self._description}: {int(100 * share)} % of {self._total:,}{self._unit}, "
            f"{speed}{self._unit}/s{ahead}"
        )


def progress(total: int, unit: str, description: str, expected: float | None = None) -> Progress:
    """Return the progress of a loop over `total` units.

    Args:
        total: number of units.
        unit: the unit.
        description: what the loop does.
        expected: predicted seconds of the loop, shown until its own speed is known.
    """
    return Progress(total, unit, description, expected)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
