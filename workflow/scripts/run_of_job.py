"""Access to the run of a job, for the rules' scripts."""

from pathlib import Path

from outlier_atlas.store.run import Run

GIVEN = {
    "tokens": "tokens_file",
    "tokens_record": "tokens_record",
    "heldout": "heldout_file",
    "heldout_record": "heldout_record",
}
"""Arguments of `Run`, by the names of files in rules."""


def run_of(job) -> Run:
    """Return the run of a job, with the files of tokens and model that the rule names.

    Args:
        job: the `snakemake` object of a rule. The rule must have the record of the model as input
            `model`, and its log in the folder `logs` of the run.
    """
    # The rule that copies tokens has both; its outputs are the tokens of the run.
    given = {
        argument: job.output.get(name) or job.input.get(name) for name, argument in GIVEN.items()
    }
    files = {argument: Path(path) for argument, path in given.items() if path}
    return Run(Path(job.log[0]).parents[1], Path(job.input.model), Path("resources"), **files)
