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
