"""The progress of a job: in its log, and as a bar or in lines where it runs by itself."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Self

from tqdm import tqdm

from outlier_atlas.console import PROGRESS, shows_stages

log = logging.getLogger(PROGRESS)

FIRST_SECONDS, LAST_SECONDS = 2.0, 30.0
"""Between two lines in the log: at first, and in a job of hours."""
LINE_SECONDS = 15.0
"""Between two lines on a screen that cannot draw a bar."""
LEAST_SHARE = 0.02
"""From which on the time that is left is told."""


class Progress:
    """The progress of one loop; a context manager.

    Snakemake shows what stands in the log. A script that runs without it, and one under
    `--verbose`, draws a bar itself, or prints lines where the screen is no terminal.
    """

    def __init__(self, total: int, unit: str, description: str) -> None:
        self._total, self._unit, self._description = total, unit, description
        self._done = 0
        self._started = self._said = time.monotonic()
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
        """Count what was done since the last update."""
        self._done += amount
        if self._bar is not None:
            self._bar.update(amount)
        now = time.monotonic()
        lately = min(max(FIRST_SECONDS, (now - self._started) / 50), LAST_SECONDS)
        if now - self._said >= (LINE_SECONDS if self._lines else lately):
            self._said = now
            log.log(logging.INFO if self._lines else logging.DEBUG, "%s", self.text(now))

    def text(self, now: float) -> str:
        """Return the progress at a time: `layers 0 to 9: 34 % of 8,192 tokens, 1,423 tokens/s`."""
        rate = self._done / max(now - self._started, 1e-9)
        left = (self._total - self._done) / rate if rate else 0.0
        share = self._done / self._total if self._total else 1.0
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        # The first steps compile and load: their rate tells nothing of the rest.
        ahead = f", {_time(left)} left" if share >= LEAST_SHARE else ""
        return (
            f"{self._description}: {int(100 * share)} % of {self._total:,}{self._unit}, "
            f"{speed}{self._unit}/s{ahead}"
        )


def progress(total: int, unit: str, description: str) -> Progress:
    """Return the progress of a loop over so many units."""
    return Progress(total, unit, description)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
