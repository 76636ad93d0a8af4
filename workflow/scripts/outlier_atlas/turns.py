"""What several runs use, and one of them makes: a model, its weights' tables, a fetched dataset.

Two runs that need the same model for the first time would both make it. So a run takes a turn for
each of them that is not there, before its jobs are planned: a lock, which other runs wait for. It
ends with the job that makes it, or with the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from outlier_atlas import locks

ENDING = ".turn"
"""Of the lock's file: a job's own lock has the same name without it."""


class Turns:
    """The turns that a run has taken.

    Args:
        folder: of the locks.
        run: that takes them; named to those who wait.
        say: is told for whom the run waits.
    """

    def __init__(self, folder: Path, run: str, say: Callable[[str], object]) -> None:
        self._folder = folder
        self._run = run
        self._say = say
        self._taken: dict[str, tuple[IO[str], Path]] = {}
        self._of_job: dict[int, str] = {}

    def take(self, name: str, first: Path, is_current: Callable[[], bool]) -> bool:
        """Wait until no other run makes something; keep the turn if it is still missing.

        Args:
            name: of what is made.
            first: one of its files.
            is_current: whether it is there and up to date.

        Returns:
            Whether it is up to date.
        """
        if name in self._taken:
            return False
        # What is made from something that is made again is made again, too.
        if not self._taken and is_current():
            return True
        lock = locks.take(
            self._folder / f"{name}{ENDING}",
            lambda holder: self._say(f"waiting for {holder}, which makes {first}"),
            f"run {self._run}",
        )
        if not self._taken and is_current():
            lock.close()
            return True
        self._taken[name] = lock, first
        return False

    def plan(self, jobs: Iterable[tuple[int, Iterable[str]]]) -> None:
        """Keep the turns of planned jobs, until each has ended; give the others back.

        Args:
            jobs: number and outputs of each.
        """
        makes = {output: number for number, outputs in jobs for output in outputs}
        for name, (_, first) in list(self._taken.items()):
            if str(first) in makes:
                self._of_job[makes[str(first)]] = name
            else:
                self._give_back(name)

    def ended(self, record: logging.LogRecord) -> bool:
        """A filter of Snakemake's log, which says when a job has ended; keeps every record."""
        number: Any = getattr(record, "job_id", None)
        if getattr(record, "event", None) == "job_finished" and number in self._of_job:
            self._give_back(self._of_job.pop(number))
        return True

    def _give_back(self, name: str) -> None:
        self._taken.pop(name)[0].close()
