"""What the Snakefile needs to know: what its process is for, and the words that end a run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterator
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
    """What the process is for that reads the Snakefile.

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
    """End Snakemake in one line where the block refuses something, or the system does."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(visible(described(error)))


def wants_closing_words(targets: Collection[str]) -> bool:
    """Whether an invocation was for the report; `make run` says the words itself, even when
    nothing was left to do."""
    return not os.environ.get("OUTLIER_ATLAS_MAKE") and (not targets or "all" in targets)


def closing_words(run: str) -> str:
    """Where the report is, and the most striking finding with the tokens that are left out of the
    run's numbers, behind what is not finite; nothing where there is no report."""
    report = Path("results") / run / "report.html"
    findings = Path("results") / run / "findings.json"
    if not report.exists() or not findings.exists():
        return ""
    told = json.loads(findings.read_text("utf-8"))
    said = f"{told['findings'][0]['text']} {told.get('left_out', '')}".rstrip()
    lines = [*told.get("alarms", [])[:1], said]
    return "\n".join(["", *(f"{visible(line)}\n" for line in lines), f"Report: {report}\n"])


def jobs_at_once(chains: int, cores: int, threads: int, gpus: int | None, of_job: int) -> int:
    """How many jobs Snakemake has at work at a time, all with the same resources.

    Args:
        chains: jobs of different ones do not wait for each other.
        cores, gpus: to be shared out; without a number of GPUs, or with 0, they are no limit.
        threads, of_job: cores and GPUs of a job; it gets no more than there are.
    """
    most = min(chains, max(1, cores // min(threads, cores)))
    return min(most, max(1, gpus // min(of_job, gpus))) if gpus else most


def main(configuration: Path) -> None:
    """Print the closing words of the run that a configuration file describes."""
    print(closing_words(settings([configuration]).name))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
