"""Rule `plan`: prints what the run takes, before anything is read or computed."""

from rule_main import run


def main(job):
    from outlier_atlas.checkpoint.source import offline, unfetched
    from outlier_atlas.extraction.print_plan import print_plan
    from outlier_atlas.roles.architecture import describe
    from outlier_atlas.settings.configuration import load
    from outlier_atlas.store.run import Run
    from run_of_job import folder_of, run_of

    settings = load(job.params.settings, "run")
    jobs = job.resources.jobs_at_once
    if not job.input.model:
        with unfetched(settings.model, describe) as (record, folder):
            print_plan(settings, Run(folder_of(job), record, folder), jobs)
        return
    offline()
    print_plan(settings, run_of(job), jobs)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
