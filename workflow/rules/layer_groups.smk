"""What depends on the number of layer groups, which `layer_groups: auto` chooses in a job."""


def with_layer_groups(function):
    """What a function makes of a run and its number of layer groups.

    With `layer_groups: auto` Snakemake calls it again once the number is chosen.
    """
    # Once for a number: a record that is an input must not be written while its rule runs.
    function = functools.cache(function)
    return of_run(lambda run: function(run, layer_groups(run)))


def layer_groups(run):
    """The number of layer groups: configured, recorded by `auto`, or still to be chosen."""
    if run.layer_groups != "auto":
        return run.layer_groups
    if PURPOSE is not Purpose.JOB:
        checkpoints.choose_layer_groups.get(run=run.name)
    return choice.read(Path(run.path(choice.CHOICE)))


def chosen_from(run):
    """What the number is chosen from; a choice that is damaged is named."""
    record = Path(run.path(choice.CHOICE))
    damage = choice.damage(record, PURPOSE is Purpose.MAKE, logger.info)
    return choice.chosen_from(run.settings) | damage


choice_inputs = inputs("choose_layer_groups", "choose_layer_groups.py", chosen_from)


def extraction_settings(run, groups):
    """The section `extraction`, without what makes nothing stale."""
    section = run.settings.extraction.model_dump(mode="json", exclude={"verify"})
    return section | {"layer_groups": groups}


def store_inputs(run, groups):
    """The record of what the store is made from."""
    return inputs(
        "create_store",
        "create_store.py",
        lambda run: create_store_settings(run)
        | {
            "extraction": extraction_settings(run, groups),
            # The file of the tokens has another name where they are of another dataset.
            "dataset": run.settings.dataset.model_dump(mode="json"),
        },
    )(run)


def reported_configuration(run, groups):
    """The configuration without what makes nothing stale."""
    configuration = run.settings.model_dump(mode="json", exclude={"execution"})
    return configuration | {"extraction": extraction_settings(run, groups)}


def report_inputs(run, groups):
    """The record of what the report is made from."""
    return inputs(
        "render_report",
        "render_report.py",
        lambda run: {"configuration": reported_configuration(run, groups)},
        compared_files,
        templates=page.PARTS,
    )(run)
