"""Rule `plan`: prints what the run takes, before anything is read or computed."""

from pathlib import Path

from doorway import job


def main(job):
    from outlier_atlas.extraction.prepare import print_plan
    from outlier_atlas.model.source import offline
    from outlier_atlas.settings.configuration import load

    offline()
    print_plan(
        settings=load(job.params.settings, "run"),
        model_record=Path(job.input.model),
        resources=Path("resources"),
        results=Path(job.log[0]).parents[1],
        jobs=job.resources.jobs_at_once,
    )


if __name__ == "__main__":
    job(main, snakemake)  # noqa: F821
