"""Functions of the number of layer groups, which `layer_groups: auto` chooses in a job."""


def with_layer_groups(function):
    """Return a function of wildcards that calls `function` with a run and its layer groups.

    With `layer_groups: auto`, Snakemake calls the function again once the number is chosen.
    """
    # Cached, because a record that is an input must not be written while its rule runs.
    function = functools.cache(function)
    return of_run(lambda run: function(run, layer_groups(run)))


chosen_layer_groups = read_once(choice.read)


def layer_groups(run):
    """Return the number of layer groups, from the configuration or the choice of `auto`."""
    if run.layer_groups != "auto":
        return run.layer_groups
    if PURPOSE is not Purpose.JOB:
        checkpoints.choose_layer_groups.get(run=run.name)
    return chosen_layer_groups(Path(run.path(choice.CHOICE)))
