"""The run of a job, for the rules' scripts."""

from pathlib import Path

from outlier_atlas.store.run import Run

GIVEN = {
    "tokens": "tokens_file",
    "tokens_record": "tokens_record",
    "heldout": "heldout_file",
    "heldout_record": "heldout_record",
}
"""The arguments of `Run` by the names that rules give their files."""


def run_of(job) -> Run:
    """Return the run of a job, with tokens and model where the rule says.

    Args:
        job: the `snakemake` object of a rule that has the record of the model as input `model`,
            and its log in the folder `logs` of the run.
    """
    # The rule that copies the tokens to the run has both: the run's own are its outputs.
    given = {
        argument: job.output.get(name) or job.input.get(name) for name, argument in GIVEN.items()
    }
    files = {argument: Path(path) for argument, path in given.items() if path}
    return Run(Path(job.log[0]).parents[1], Path(job.input.model), Path("resources"), **files)
