"""Why rules run, in words: one line for each rule, whatever the number of its jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from outlier_atlas.compat.snakemake_internals import reason_of, rules_before
from outlier_atlas.sanitize import shortened

NAMED = 3
"""Files or rules that are named; of the others there is the number."""
LONGEST = 160
"""Characters of a reason."""

Known = Callable[[str, bool], str | None]
"""Takes an input of a job, and whether it is newer than the job's outputs: `Inputs.reason`."""


def reason(dag: Any, jobs: Iterable[Any], known: Known) -> str:
    """Return why jobs of one rule run.

    Args:
        dag: Snakemake's graph of jobs.
        jobs: of the rule.
        known: returns the reason that the record of a rule's inputs gives.
    """
    found = dict.fromkeys(text for job in jobs if (text := _of_job(dag, job, known)))
    texts = list(found)
    more = f"; and {len(texts) - NAMED} more reasons" if len(texts) > NAMED else ""
    return shortened("; ".join(texts[:NAMED]), LONGEST) + more


def _of_job(dag: Any, job: Any, known: Known) -> str:
    """The first reason that holds, from the one that says most."""
    return next(_reasons(dag, job, known))


def _reasons(dag: Any, job: Any, known: Known) -> Iterator[str]:
    why = reason_of(dag, job)
    yield from filter(None, (known(file, file in why.updated) for file in map(str, job.input)))
    if why.forced:
        yield "asked for on the command line"
    if why.incomplete:
        yield "an earlier run did not finish it"
    if why.missing:
        there = any(Path(file).exists() for file in map(str, job.output))
        yield f"{_named(sorted(why.missing))} missing" if there else "not made yet"
    if why.updated:
        yield f"{_named(sorted(why.updated))} changed"
    if why.after:
        yield _after(dag, job)
    if why.without_files:
        yield "asked for"
    yield shortened(" ".join(why.text.split()), LONGEST)


def _after(dag: Any, job: Any) -> str:
    """`after detect_outliers`: the rules whose jobs make the inputs again.

    A job that waits for another of its own rule has that one's reason.
    """
    makers = rules_before(dag, job)
    if makers == {job.rule.name}:
        return ""
    others = sorted(makers - {job.rule.name})
    return f"after {_named(others)}" if others else "its inputs are made again"


def _named(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
