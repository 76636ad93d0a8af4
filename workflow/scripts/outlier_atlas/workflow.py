"""Purpose of the process that reads the Snakefile, and the lines that end a run."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from outlier_atlas.compat.snakemake_internals import command_line, is_job, output_settings
from outlier_atlas.files import described
from outlier_atlas.inputs import Purpose
from outlier_atlas.sanitize import visible
from outlier_atlas.settings.document import settings

LOOKING = (
    "lint", "list_rules", "list_target_rules", "print_compilation", "containerize", "report",
    "generate_unit_tests", "dag", "rulegraph", "filegraph", "d3dag", "unlock", "cleanup_metadata",
    "conda_cleanup_envs", "conda_create_envs_only", "list_conda_envs", "cleanup_shadow",
    "container_cleanup_images", "list_changes", "list_input_changes", "list_params_changes",
    "list_untracked", "summary", "detailed_summary", "archive",
)  # fmt: skip
"""Options of Snakemake with which it reads the Snakefile and runs no job."""


def purpose(workflow: Any) -> Purpose:
    """Return the purpose of the process that reads the Snakefile.

    Args:
        workflow: Snakemake's own object, as the Snakefile knows it.
    """
    if is_job(workflow):
        return Purpose.JOB
    given = command_line()
    looks = any(getattr(given, name, None) for name in LOOKING)
    if getattr(given, "report_after_run", False):
        looks = False
    return Purpose.LOOK if looks or output_settings(workflow).dryrun else Purpose.MAKE


@contextmanager
def one_line() -> Iterator[None]:
    """Exit Snakemake with one line if the block raises `ValueError` or `OSError`."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(visible(described(error)))


def signed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Write down the signature of a function that Snakemake calls for each job, and return it.

    Snakemake inspects the signature three times per call, which takes longer than most functions.
    """
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


def wants_closing_words(targets: Collection[str]) -> bool:
    """Return whether an invocation was for the report.

    `make run` prints the closing words itself, also when nothing was left to do.
    """
    return not os.environ.get("OUTLIER_ATLAS_MAKE") and (not targets or "all" in targets)


def closing_words(run: str) -> str:
    """Return the most striking finding and the path of the report; nothing without a report.

    Values that are not finite come first. Excluded tokens are named after the finding.
    """
    report = Path("results") / run / "report.html"
    findings = Path("results") / run / "findings.json"
    if not report.exists() or not findings.exists():
        return ""
    written = json.loads(findings.read_text("utf-8"))
    sentence = f"{written['findings'][0]['text']} {written.get('left_out', '')}".rstrip()
    lines = [*written.get("alarms", [])[:1], sentence]
    return "\n".join(["", *(f"{visible(line)}\n" for line in lines), f"Report: {report}\n"])


def jobs_at_once(chains: int, cores: int, threads: int, gpus: int | None, of_job: int) -> int:
    """Return the number of jobs that Snakemake runs at a time, if all have the same resources.

    Args:
        chains: number of chains of jobs; jobs of different chains do not wait for each other.
        cores: number of cores that the jobs share.
        gpus: number of GPUs that the jobs share; None or 0 is no limit.
        threads: number of cores of a job, at most `cores`.
        of_job: number of GPUs of a job, at most `gpus`.
    """
    most = min(chains, max(1, cores // min(threads, cores)))
    return min(most, max(1, gpus // min(of_job, gpus))) if gpus else most


def main(configuration: Path) -> None:
    """Print the closing words of the run that a configuration file describes."""
    print(closing_words(settings([configuration]).name))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
