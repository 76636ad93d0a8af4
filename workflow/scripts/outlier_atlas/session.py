"""Locks and records that one Snakemake process holds for its runs.

Snakemake reads the Snakefile of a module once for each `use rule ... from`. The lock of a run and
the turns of shared files can be taken once only.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from outlier_atlas import locks, supervision
from outlier_atlas.compat import snakemake_internals
from outlier_atlas.files import sweep
from outlier_atlas.inputs import Inputs, Purpose
from outlier_atlas.preload.client import start
from outlier_atlas.turns import Turns

SHARED = Path("resources")
"""Folder of the files that several runs use."""

AHEAD = "OUTLIER_ATLAS_AHEAD"
"""Environment variable of extraction jobs on this machine if all of them are to run."""


class Session:
    """The locks, the records and the turns of the runs of a process.

    Args:
        folders: folders of the runs.
        purpose: purpose of the process.
        say: a function that writes a line to the terminal.
        tell: a function that receives the reason why a rule is out of date.
        turns: turns of the process.

    Raises:
        ValueError: another Snakemake makes one of the runs, or none can.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        purpose: Purpose,
        say: Callable[[str], object],
        tell: Callable[..., object],
        turns: Turns,
    ) -> None:
        self.inputs = Inputs(purpose, functools.cache(tell))  # each reason once
        self.turns = turns
        if purpose is Purpose.MAKE:
            # One Snakemake makes a run. It waits for jobs that outlived a killed Snakemake.
            self._locks = [locks.own(folder, say) for folder in sorted(folders)]
            for folder in folders:
                # Temporary files of killed processes: no other process writes in this folder now.
                sweep(folder, older_than=0)
            sweep(SHARED, older_than=24 * 3600)

    def at_events_of(self, workflow: Any) -> Callable[[logging.LogRecord], bool]:
        """Return a filter of Snakemake's log that acts when jobs are planned and when one ends.

        Snakemake calls only `onstart` of the main Snakefile, and not with `--no-hooks`.

        Args:
            workflow: the workflow object of Snakemake.
        """
        # A program that uses Snakemake as a library may run one workflow after the other.
        _latest[:] = [workflow]

        def act(record: logging.LogRecord) -> bool:
            if getattr(record, "event", None) == "run_info" and _latest == [workflow]:
                local = snakemake_internals.runs_jobs_here(workflow)
                supervision.jobs_begin(local)
                graph = snakemake_internals.graph(workflow)
                if local and not snakemake_internals.is_scheduled(workflow):
                    start(snakemake_internals.planned_rules(graph))
                    if snakemake_internals.wants_everything(workflow):
                        os.environ[AHEAD] = "1"
                self.turns.plan(snakemake_internals.planned_outputs(graph))
            return self.turns.ended(record)

        return act


_latest: list[Any] = []
_sessions: WeakValueDictionary[tuple[tuple[Path, ...], Purpose], Session] = WeakValueDictionary()
_turns: WeakValueDictionary[Path, Turns] = WeakValueDictionary()


def session(
    folders: Sequence[Path],
    purpose: Purpose,
    say: Callable[[str], object],
    tell: Callable[..., object],
) -> Session:
    """Return the session of some runs in this process, as long as a Snakefile holds it.

    Raises:
        ValueError: another Snakemake makes one of the runs, or none can.
    """
    folder = SHARED.absolute() / locks.LOCKS
    if (turns := _turns.get(folder)) is None:
        _turns[folder] = turns = Turns(
            SHARED / locks.LOCKS, ", ".join(f.name for f in folders), say
        )
    key = tuple(folder.absolute() for folder in folders), purpose
    if (held := _sessions.get(key)) is None:
        _sessions[key] = held = Session(folders, purpose, say, tell, turns)
    return held
