"""Rule `choose_layer_groups`: records what `extraction.layer_groups: auto` is for the run."""

from pathlib import Path

from rule_main import run


def main(job):
    from outlier_atlas.checkpoint.source import offline
    from outlier_atlas.extraction import choice
    from outlier_atlas.settings.configuration import load

    settings = load(job.params.settings, "run")
    record, model = Path(job.output.choice), Path(job.input.model)
    if choice.keep(record, choice.wanted(settings, model)):
        return
    from outlier_atlas.extraction.layer_groups import Machine, choose

    offline()
    machine = Machine(job.resources.jobs_at_once, bool(job.resources.scheduled))
    choose(settings, model, Path("resources"), record.parents[1], machine)


if __name__ == "__main__":
    run(main, snakemake)  # noqa: F821
