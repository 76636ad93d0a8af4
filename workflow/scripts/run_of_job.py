"""The run of a job, for the rules' scripts."""

from pathlib import Path

from outlier_atlas.store.run import Run

GIVEN = {
    "tokens": "tokens_file",
    "tokens_record": "tokens_record",
    "heldout": "heldout_file",
    "heldout_record": "heldout_record",
}
"""Names of a rule's inputs, and the arguments of `Run` that they are."""


def run_of(job) -> Run:
    """Return the run that a job is of: its folder has the log, its inputs are where the rule says.

    Args:
        job: the `snakemake` object, of a rule whose input has the record of the model as `model`.
    """
    given = {argument: job.input.get(name) for name, argument in GIVEN.items()}
    files = {argument: Path(path) for argument, path in given.items() if path}
    folder = Path(job.log[0]).parents[1]
    return Run(folder, Path(job.input.model), Path("resources"), **files)
