"""Script of rule `choose_layer_groups`, which records the choice of `layer_groups: auto`."""

from rule_main import run


def main(job):
    from outlier_atlas.checkpoint.source import offline
    from outlier_atlas.extraction import choice
    from outlier_atlas.settings.configuration import load
    from run_of_job import run_of

    settings, run = load(job.params.settings, "run"), run_of(job)
    if choice.keep(run.layer_groups_record, choice.inputs_of(settings, run.model_record)):
        return
    from outlier_atlas.extraction.layer_groups import Machine, choose

    offline()
    machine = Machine(job.resources.jobs_at_once, bool(job.resources.scheduled))
    choose(settings, run, machine)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
