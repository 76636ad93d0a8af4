"""Rule `plan`: prints what the run takes, before anything is read or computed."""

from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.checkpoint.source import offline, unfetched
    from outlier_atlas.extraction.print_plan import print_plan
    from outlier_atlas.roles.architecture import describe
    from outlier_atlas.settings.configuration import load
    from outlier_atlas.store.run import Run

    settings = load(job.params.settings, "run")
    results, jobs = Path(job.log[0]).parents[1], job.resources.jobs_at_once
    if not job.input.model:
        with unfetched(settings.model, describe) as (record, folder):
            print_plan(settings, Run(results, record, folder), jobs)
        return
    offline()
    print_plan(settings, Run(results, Path(job.input.model), Path("resources")), jobs)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
