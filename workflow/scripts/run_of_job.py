"""The run of a job, for the rules' scripts."""

from pathlib import Path

from outlier_atlas.store.run import Run

GIVEN = {
    "tokens": "tokens_file",
    "tokens_record": "tokens_record",
    "heldout": "heldout_file",
    "heldout_record": "heldout_record",
}
"""The arguments of `Run` by the names that rules give their inputs."""


RESOURCES = Path("resources")


def run_of(job) -> Run:
    """Return the run of a job, with tokens and model where the job's inputs are.

    Args:
        job: the `snakemake` object of a rule that has the record of the model as input `model`.
    """
    given = {argument: job.input.get(name) for name, argument in GIVEN.items()}
    files = {argument: Path(path) for argument, path in given.items() if path}
    return Run(folder_of(job), Path(job.input.model), RESOURCES, **files)


def folder_of(job) -> Path:
    """Return the folder of a job's run, which has the job's log in `logs`."""
    return Path(job.log[0]).parents[1]
