"""Settings, code and users' files that are inputs of the rules, in addition to files of rules.

`<rule>_settings` returns the settings, which are the parameters of the rule. `<rule>_inputs` writes
a record of the inputs (`inputs.py`) and returns its path, which is an input of the rule.
"""


def inputs(
    name,
    script,
    settings,
    files=lambda run: {},
    templates=(),
    with_products=True,
    on_demand=False,
):
    """Return a function of a run that writes the record of a rule's inputs and returns its path.

    Args:
        name: name of the rule.
        script: script of the rule. The record covers its code and the modules that it imports.
        settings: a function that returns the settings of a run.
        files: a function that returns the digests of the user's files of a run.
        templates: files that count as code.
        with_products: whether the rule writes a record of its products.
        on_demand: whether an ordinary run does without the rule.
    """

    # Cached, because a record that is an input must not be written while its rule runs.
    @functools.cache
    def record(run):
        path = Path(run.path(f"manifests/{INPUTS_FOLDER}/{name}.json"))
        wanted = content(
            script,
            # Included, because the record of another model may be older than the outputs.
            lambda: settings(run) | {"model": run.model.recorded_settings()},
            lambda: files(run),
            templates,
        )
        with one_line():
            return INPUTS.record(path, wanted, with_products, on_demand)

    return record


def shared_inputs(name, script, settings, outputs, files=lambda of: {}, without=None):
    """Return a function that writes the record of inputs of a rule with shared outputs.

    Several runs share the outputs, and another process may be writing them. The function takes a
    model, a dataset or a package.

    Args:
        name: see `inputs`.
        script: see `inputs`.
        settings: a function that returns the settings of a model, dataset or package.
        outputs: a function that returns the outputs of the rule.
        files: a function that returns the digests of the user's files.
        without: folder of modules that do not count as code of the rule.
    """

    @functools.cache
    def record(of):
        whole = f"{name}.{of.name}"
        path = Path(f"resources/{INPUTS_FOLDER}/{whole}.json")
        wanted = content(
            script, lambda: settings(of), lambda: files(of), without=without
        )
        with one_line():
            if PURPOSE is Purpose.MAKE:
                paths = [
                    Path(output) for output in [*outputs(of), shared_products(whole)]
                ]
                TURNS.take(
                    whole, paths[0], lambda: INPUTS.is_current(path, wanted, paths)
                )
            return INPUTS.record(path, wanted)

    return record


def content(script, settings, files, templates=(), without=None):
    """Return a function that returns the content of a record, called only if it is needed."""

    def wanted():
        code = {"code": SOURCES.digest(script, templates, without)} if script else {}
        return {"settings": settings(), "files": files(), **code}

    return wanted


package_inputs = shared_inputs(
    "fetch_package",
    None,
    lambda package: package.recorded_settings(),
    lambda package: [package.file],
)


def fetch_model_settings(model):
    """Return the settings that identify the model."""
    return dict(model=model.recorded_settings())


fetch_model_inputs = shared_inputs(
    "fetch_model",
    "fetch_model.py",
    fetch_model_settings,
    lambda model: [model.record],
    lambda model: model.digests(),
    # These modules only refuse a model before it is fetched.
    without="outlier_atlas/roles",
)


def dataset_settings(dataset):
    """Return the settings that the tokens depend on."""
    return dataset.recorded_settings()


fetch_dataset_inputs = shared_inputs(
    "fetch_dataset",
    "fetch_dataset.py",
    dataset_settings,
    lambda dataset: [dataset.documents, dataset.documents_record],
)


def dataset_products(dataset):
    """Return the records of the files from which the text is read."""
    if dataset.kind == "hub":
        return [shared_products(f"fetch_dataset.{dataset.name}")]
    return builtin_products(dataset.settings.source)


tokenize_dataset_inputs = shared_inputs(
    "tokenize_dataset",
    "tokenize_dataset.py",
    lambda dataset: dataset_settings(dataset)
    | {"model": dataset.model.recorded_settings()},
    lambda dataset: [dataset.tokens, dataset.tokens_record],
    lambda dataset: dataset.digests(),
)


def chosen_from(run):
    """Return the inputs of the choice of layer groups, and report a damaged choice."""
    record = Path(run.path(choice.CHOICE))
    damage = choice.damage(record, PURPOSE is Purpose.MAKE, logger.info)
    return choice.chosen_from(run.settings) | damage


choice_inputs = inputs("choose_layer_groups", "choose_layer_groups.py", chosen_from)
# Does not look at the choice: where no job needs it, `verify` is to find the damage.
first_choice_inputs = inputs(
    "choose_layer_groups",
    "choose_layer_groups.py",
    lambda run: choice.chosen_from(run.settings),
)


def create_store_settings(run):
    """Return the settings that do not depend on the number of layer groups."""
    return dict(
        chunk_tokens=run.settings.chunk_tokens,
        dtype=run.settings.model.dtype,
        trust_remote_code=run.settings.model.trust_remote_code,
    )


def extraction_settings(run, groups):
    """Return the section `extraction` without keys that make nothing stale."""
    section = run.settings.extraction.model_dump(mode="json", exclude={"verify"})
    return section | {"layer_groups": groups}


@functools.cache
def store_inputs(run, groups):
    """Write the record of the inputs of the store."""
    return inputs(
        "create_store",
        "create_store.py",
        lambda run: create_store_settings(run)
        | {
            "extraction": extraction_settings(run, groups),
            # The dataset is included, because its tokens are in a file of another name.
            "dataset": run.settings.dataset.model_dump(mode="json"),
        },
    )(run)


def reported_configuration(run, groups):
    """Return the configuration without keys that make nothing stale."""
    configuration = run.settings.model_dump(mode="json", exclude={"execution"})
    return configuration | {"extraction": extraction_settings(run, groups)}


@functools.cache
def report_inputs(run, groups):
    """Write the record of the inputs of the report."""
    return inputs(
        "render_report",
        "render_report.py",
        lambda run: {"configuration": reported_configuration(run, groups)},
        compared_files,
        templates=TEMPLATES,
    )(run)


def extract_activations_settings(run):
    """Return the settings that no other input contains."""
    return dict(trust_remote_code=run.settings.model.trust_remote_code)


# An extraction job that runs again computes only missing rows. It has no record of its products, so
# it runs again whenever the record of its inputs changes.
extract_activations_inputs = inputs(
    "extract_activations",
    "extract_activations.py",
    extract_activations_settings,
    with_products=False,
)


def detect_outliers_settings(run):
    """Return the settings of the criteria, without SmoothQuant (see `join_weights`)."""
    detection = run.settings.detection
    return dict(
        detection=detection.model_dump(mode="json", exclude={"smoothquant"}),
        trust_remote_code=run.settings.model.trust_remote_code,
    )


detect_outliers_inputs = inputs(
    "detect_outliers", "detect_outliers.py", detect_outliers_settings
)


def measure_weights_settings(model):
    """Return settings of the model only, so that its runs measure the weights once."""
    return dict(trust_remote_code=model.settings.trust_remote_code)


def measured_weights(model):
    """Return the files with the measurements of a model's weights."""
    return [path.format(model=model.name) for path in MEASURED_WEIGHTS]


measure_weights_inputs = shared_inputs(
    "measure_weights", "measure_weights.py", measure_weights_settings, measured_weights
)


def join_weights_settings(run):
    """Return the settings of SmoothQuant."""
    return dict(
        smoothquant=run.settings.detection.smoothquant.model_dump(mode="json"),
    )


join_weights_inputs = inputs(
    "join_weights",
    "join_weights.py",
    lambda run: join_weights_settings(run) | {"measured": run.settings.weights.measure},
)


def ablate_settings(run):
    """Return the settings of the ablation stage."""
    return dict(
        ablation=run.settings.ablation.model_dump(mode="json"),
        bootstrap=run.settings.detection.bootstrap.model_dump(mode="json"),
        trust_remote_code=run.settings.model.trust_remote_code,
    )


ablate_inputs = inputs(
    "ablate",
    "ablate.py",
    # The dataset is included, because its held-out tokens are in a file of another name.
    lambda run: ablate_settings(run)
    | {"dataset": run.settings.dataset.model_dump(mode="json")},
)


def refuse_unconfigured(run):
    """Return the record of the ablation's inputs, and refuse a run without ablation."""
    if not run.ablates:
        sys.exit(
            f"{run.path('tables/ablations.parquet')}: ablation.sequences is 0 in the configuration "
            "of the run, so nothing is ablated; give a number of held-out sequences"
        )
    return ablate_inputs(run)


draw_figures_inputs = inputs(
    "draw_figures", "draw_figures.py", lambda run: {}, on_demand=True
)


def compared_files(run):
    """Return the digests of the files of another run that the report reads."""
    other = run.compared
    if other is None:
        return {}
    return Digests().of({file: other / file for file in compared_runs.FILES})


def refuse_incomparable(run):
    """Return no files, and refuse a missing run to compare with, if a report is needed."""
    if run.compared:
        # Snakemake would only list all missing files of the other run, without advice.
        with one_line():
            compared_runs.refuse_missing(run.compared)
    return []


def make_records():
    """Write all records before Snakemake plans jobs.

    Snakemake lists a folder once, when it first looks for a file in it. It would not see a record
    that is written later. Records for shared outputs come first, because they may have to wait for
    another process. Every process writes them in the same order, which prevents a deadlock.
    """
    make_shared_records()
    for run in RUNS.values():
        for record in (
            extract_activations_inputs,
            detect_outliers_inputs,
            join_weights_inputs,
            draw_figures_inputs,
        ):
            record(run)
        if run.ablates:
            ablate_inputs(run)
        groups = run.layer_groups
        if groups == "auto":
            first_choice_inputs(run)
            groups = choice.read(Path(run.path(choice.CHOICE)))
        # If the number is not chosen yet or changes, these records are written after the choice.
        if groups is not None:
            store_inputs(run, groups)
            report_inputs(run, groups)


def make_shared_records():
    """Write the records for outputs that several runs share."""
    runs, models, datasets = RUNS.values(), sorted(MODELS), sorted(DATASETS)
    for source in sorted({source for run in runs for source in run.builtins}):
        package_inputs(package(source.removeprefix("builtin:")))
    for name in models:
        fetch_model_inputs(MODELS[name])
    for name in datasets:
        if DATASETS[name].kind == "hub":
            fetch_dataset_inputs(DATASETS[name])
    for name in datasets:
        tokenize_dataset_inputs(DATASETS[name])
    measured = {run.model.name for run in runs if run.settings.weights.measure}
    for name in sorted(measured):
        measure_weights_inputs(MODELS[name])
