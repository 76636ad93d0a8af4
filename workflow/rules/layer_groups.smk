"""What depends on the number of layer groups, which `layer_groups: auto` chooses in a job."""


def with_layer_groups(function):
    """What a function makes of the number of layer groups.

    With `layer_groups: auto` a function that Snakemake calls again once the number is chosen.
    """
    # Once for a number: a record that is an input must not be written while its rule runs.
    function = functools.cache(function)
    if not AUTO_GROUPS:
        return function(LAYER_GROUPS)
    return lambda wildcards: function(chosen_layer_groups())


def chosen_layer_groups():
    """The number that `layer_groups: auto` stands for: recorded, or still to be chosen."""
    if PURPOSE is not Purpose.JOB:
        checkpoints.choose_layer_groups.get()
    return choice.read(Path(CHOICE))


@functools.cache
def choice_inputs():
    """The record of what the number is chosen from; a choice that is damaged is named."""
    make = PURPOSE is Purpose.MAKE
    with one_line():
        damage = choice.damage(Path(CHOICE), make, logger.info)
    settings = choice.chosen_from(SETTINGS) | damage
    return inputs("choose_layer_groups", "choose_layer_groups.py", settings)


def extraction_settings(groups):
    """The section `extraction`, without what makes nothing stale."""
    section = SETTINGS.extraction.model_dump(mode="json", exclude={"verify"})
    return section | {"layer_groups": groups}


def store_inputs(groups):
    """The record of what the store is made from."""
    settings = CREATE_STORE | {"extraction": extraction_settings(groups)}
    return inputs("create_store", "create_store.py", settings)


def reported_configuration(groups):
    """The configuration without what makes nothing stale."""
    configuration = SETTINGS.model_dump(mode="json", exclude={"execution"})
    return configuration | {"extraction": extraction_settings(groups)}


def report_inputs(groups):
    """The record of what the report is made from."""
    settings = {"configuration": reported_configuration(groups)}
    return inputs(
        "render_report", "render_report.py", settings, compared, templates=TEMPLATES
    )
