"""Locks of files that several runs share: models, measured weights, fetched datasets, tokens.

Two processes that need the same model for the first time would both make it. So a process takes a
turn, which is a lock, for each shared file that is missing, before jobs are planned. Others wait
for the lock. A turn ends with the job that makes the file, or with the process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from outlier_atlas import locks

ENDING = ".turn"
"""Ending of the lock's file; the lock of the job itself has the same name without it."""


class Turns:
    """The turns that a process has taken.

    Args:
        folder: folder of the locks.
        run: name of the run that takes them; processes that wait show it.
        say: called with a line that names the run that this process waits for.
    """

    def __init__(self, folder: Path, run: str, say: Callable[[str], object]) -> None:
        self._folder = folder
        self._run = run
        self._say = say
        self._taken: dict[str, tuple[IO[str], Path]] = {}
        self._of_job: dict[int, str] = {}

    def take(self, name: str, first: Path, is_current: Callable[[], bool]) -> bool:
        """Wait until no other process makes the files of a rule; keep the turn if they are missing.

        Args:
            name: name of the rule, with its wildcards.
            first: one of the files.
            is_current: returns whether the files exist and are up to date.

        Returns:
            Whether the files are up to date.
        """
        if name in self._taken:
            return False
        # After its first turn, a process remakes all later files, because they may depend on it.
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
            jobs: number and outputs of each planned job.
        """
        makes = {output: number for number, outputs in jobs for output in outputs}
        for name, (_, first) in list(self._taken.items()):
            if str(first) in makes:
                self._of_job[makes[str(first)]] = name
            else:
                self._give_back(name)

    def ended(self, record: logging.LogRecord) -> bool:
        """Give back the turn of a job that has ended; a filter that keeps all records."""
        number: Any = getattr(record, "job_id", None)
        if getattr(record, "event", None) == "job_finished" and number in self._of_job:
            self._give_back(self._of_job.pop(number))
        return True

    def _give_back(self, name: str) -> None:
        self._taken.pop(name)[0].close()
