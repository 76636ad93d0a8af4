"""Script of rule `plan`, which prints memory, disk and time of runs before they start."""

from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.checkpoint.source import offline, unfetched
    from outlier_atlas.extraction.print_plan import Jobs, print_plan
    from outlier_atlas.roles.architecture import describe
    from outlier_atlas.settings.configuration import load
    from outlier_atlas.store.run import Run

    # Runs whose model is not fetched come first: they need the network.
    for planned in sorted(job.params.runs, key=lambda planned: bool(planned["model"])):
        settings = load(planned["settings"], "run")
        results, jobs = Path(planned["folder"]), Jobs(**planned["jobs"])
        if not planned["model"]:
            with unfetched(settings.model, describe) as (record, folder):
                print_plan(settings, Run(results, record, folder), jobs)
            continue
        offline()
        print_plan(settings, Run(results, Path(planned["model"]), Path("resources")), jobs)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
