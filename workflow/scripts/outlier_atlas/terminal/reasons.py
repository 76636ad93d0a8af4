"""Reasons why rules run, as one line for each rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from outlier_atlas.compat.snakemake_internals import reason_of, rules_before
from outlier_atlas.sanitize import shortened

NAMED = 3
"""Maximum number of files or rules to name; the others are counted."""
LONGEST = 160
"""Maximum number of characters of a reason."""

Known = Callable[[str, bool], str | None]
"""Function that returns the reason of a job from one of its inputs (`Inputs.reason`).

Its second argument tells whether the input is newer than the outputs of the job.
"""


def reason(dag: Any, jobs: Iterable[Any], known: Known) -> str:
    """Return the reasons why jobs of one rule run.

    Args:
        dag: job graph of Snakemake.
        jobs: jobs of the rule.
        known: a function that returns the reason from the record of a rule's inputs.
    """
    unique = dict.fromkeys(text for job in jobs if (text := _of_job(dag, job, known)))
    texts = list(unique)
    more = f"; and {len(texts) - NAMED} more reasons" if len(texts) > NAMED else ""
    return shortened("; ".join(texts[:NAMED]), LONGEST) + more


def _of_job(dag: Any, job: Any, known: Known) -> str:
    """Return the most specific reason of a job."""
    return next(_reasons(dag, job, known))


def _reasons(dag: Any, job: Any, known: Known) -> Iterator[str]:
    why = reason_of(dag, job)
    yield from filter(None, (known(file, file in why.updated) for file in map(str, job.input)))
    if why.forced:
        yield "asked for on the command line"
    if why.incomplete:
        yield "an earlier run did not finish it"
    if why.missing:
        has_outputs = any(Path(file).exists() for file in map(str, job.output))
        yield f"{_named(sorted(why.missing))} missing" if has_outputs else "not made yet"
    if why.updated:
        yield f"{_named(sorted(why.updated))} changed"
    if why.after:
        yield _after(dag, job)
    if why.without_files:
        yield "asked for"
    yield shortened(" ".join(why.text.split()), LONGEST)


def _after(dag: Any, job: Any) -> str:
    """Return the rules whose jobs recompute the inputs, such as `after detect_outliers`.

    The text is empty if the job waits only for jobs of its own rule, which have their own reason.
    """
    makers = rules_before(dag, job)
    if makers == {job.rule.name}:
        return ""
    others = sorted(makers - {job.rule.name})
    return f"after {_named(others)}" if others else "its inputs are made again"


def _named(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
