"""Script of rule `render_report`, which writes the page and the findings of a run."""

from functools import partial
from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.job_times import of_job
    from outlier_atlas.report.figures import report_outdated
    from outlier_atlas.report.page import PageInputs, render
    from run_of_job import run_of

    inputs = PageInputs(
        configuration=job.params.configuration,
        run=run_of(job),
        ablations=bool(job.input.ablations),
        now=partial(of_job, job),
    )
    settings = job.params.configuration["report"]
    render(settings, inputs, Path(job.output.page), Path(job.output.findings))
    report_outdated(inputs.run)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
