"""Files of the rules by name, and what rules ask about the run, the model or the dataset."""

import functools
import re

from outlier_atlas import products, tables
from outlier_atlas.criteria import tables as criteria_tables
from outlier_atlas.digests import Digests
from outlier_atlas.inputs import FOLDER as INPUTS_FOLDER
from outlier_atlas.plan import choice, scheduler_resources
from outlier_atlas.planned_run import Package, builtin_files
from outlier_atlas.report import compared_runs, figures, page
from outlier_atlas.settings.source import source_kind
from outlier_atlas.workflow import jobs_at_once, literal

MODELS = {run.model.name: run.model for run in RUNS.values()}
DATASETS = {dataset.name: dataset for run in RUNS.values() for dataset in run.datasets}


def one_of(names):
    """A regular expression for some names."""
    return "|".join(map(re.escape, names))


# Of each rule, and not of the whole workflow, which may have taken these rules as a module.
CONSTRAINTS = dict(
    run=one_of(RUNS),
    model=one_of(MODELS),
    dataset=one_of(DATASETS),
    **dict.fromkeys(["group", "groups", "shard", "shards"], r"\d+"),
)

RESULTS = "results/{run}"

MODEL_RECORD = "resources/models/{model}.json"
# Of the model and not of a run: the next run of the same model finds them.
MEASURED_WEIGHTS = [
    f"resources/weights/{{model}}/{file}"
    for file in [
        "weight_channels.parquet",
        "weights.parquet",
        "weights.csv",
        "weight_errors.parquet",
        "weight_errors.csv",
    ]
]

DOCUMENTS = "resources/datasets/{dataset}.jsonl"
DOCUMENTS_RECORD = "resources/datasets/{dataset}.json"
SHARED_TOKENS = "resources/tokens/{dataset}.parquet"
SHARED_TOKENS_RECORD = "resources/tokens/{dataset}.json"

TOKENS = f"{RESULTS}/tokens.parquet"
TOKENS_RECORD = f"{RESULTS}/manifests/tokens.json"
STORE_RECORD = f"{RESULTS}/manifests/store.json"
CHOICE = f"{RESULTS}/{choice.CHOICE}"

TABLES = [f"{RESULTS}/tables/{table.name}.parquet" for table in criteria_tables.TABLES]
WEIGHT_TABLES = [
    f"{RESULTS}/tables/{table.name}.parquet" for table in tables.WEIGHT_TABLES
]
CSV_WEIGHT_TABLES = [
    f"{RESULTS}/tables/{table.name}.csv" for table in tables.WEIGHT_TABLES
]
CSV_TABLES = [f"{RESULTS}/tables/{table.name}.csv" for table in criteria_tables.TABLES]
ABLATIONS = f"{RESULTS}/tables/{tables.ABLATIONS.name}.parquet"
ABLATIONS_CSV = f"{RESULTS}/tables/{tables.ABLATIONS.name}.csv"
REPORT = f"{RESULTS}/report.html"
FINDINGS = f"{RESULTS}/findings.json"


def of_run(function):
    """What a function makes of the run that a job belongs to."""
    return lambda wildcards: function(RUNS[wildcards.run])


def of_model(function):
    """What a function makes of the model that a job belongs to."""
    return lambda wildcards: function(MODELS[wildcards.model])


def of_dataset(function):
    """What a function makes of the dataset that a job belongs to."""
    return lambda wildcards: function(DATASETS[wildcards.dataset])


def each(of, settings, planned):
    """The parameters of a rule: a function of the wildcards for each of its settings.

    Args:
        of: `of_run`, `of_model` or `of_dataset`.
        settings: gives all of them, by name; the record of the rule's inputs has the same ones.
        planned: the runs, models or datasets.
    """

    def one(name):
        return of(lambda which: settings(which)[name])

    return {name: one(name) for which in planned.values() for name in settings(which)}


def inputs(
    name,
    script,
    settings,
    files=lambda run: {},
    templates=(),
    with_products=True,
):
    """A function that makes the record of what a rule of a run is made from, and returns its path.

    The record stands for everything but the files of other rules.
    """

    # Once in a process: a record that is an input must not be written while its rule runs.
    @functools.cache
    def record(run):
        path = Path(run.path(f"manifests/{INPUTS_FOLDER}/{name}.json"))
        wanted = content(
            script,
            # The record of another model may be older than what was made before.
            lambda: settings(run) | {"model": run.model.recorded_settings()},
            lambda: files(run),
            templates,
        )
        with one_line():
            return INPUTS.record(path, wanted, with_products)

    return record


def shared_inputs(name, script, settings, outputs, files=lambda of: {}, without=None):
    """The same of a rule whose outputs several runs use; another run may be making them."""

    @functools.cache
    def record(of):
        whole = f"{name}.{of.name}"
        path = Path(f"resources/{INPUTS_FOLDER}/{whole}.json")
        wanted = content(
            script, lambda: settings(of), lambda: files(of), without=without
        )
        with one_line():
            if PURPOSE is Purpose.MAKE:
                there = [
                    Path(output) for output in [*outputs(of), shared_products(whole)]
                ]
                TURNS.take(
                    whole, there[0], lambda: INPUTS.is_current(path, wanted, there)
                )
            return INPUTS.record(path, wanted)

    return record


def content(script, settings, files, templates=(), without=None):
    """What the record of a rule's inputs holds, asked for where it is needed."""

    def wanted():
        code = {"code": SOURCES.digest(script, templates, without)} if script else {}
        return {"settings": settings(), "files": files(), **code}

    return wanted


def products_of(name):
    """The record of what a rule of a run has made; a job checks what it reads by it."""
    return f"{RESULTS}/manifests/{products.FOLDER}/{name}.json"


def shared_products(name):
    """The same of a rule whose outputs several runs use."""
    return f"resources/{products.FOLDER}/{name}.json"


def builtin_products(source):
    """The record of the file of a built-in model or text."""
    if source_kind(source) != "builtin":
        return []
    return [shared_products(f"fetch_package.{package(source[len('builtin:'):]).name}")]


package = functools.cache(Package)


def everything(run):
    """What a run leaves at last: the records of all that its rules have made.

    A file that such a record lists, and that is missing, is seen without being named here
    (`Inputs.record`).
    """
    shared = [f"fetch_model.{run.model.name}"]
    if run.settings.weights.measure:
        shared += [f"measure_weights.{run.model.name}"]
    return [*map(shared_products, shared), *run.products(*run.rules())]


def manifests(run, groups):
    """The manifests of all extraction jobs of a run."""
    shards = run.sequence_shards
    return [
        run.path(extraction_manifest(group, groups, shard, shards))
        for group in range(groups)
        for shard in range(shards)
    ]


def extraction_manifest(group, groups, shard, shards):
    """The record that an extraction job leaves when all of its part is committed."""
    return (
        f"manifests/extraction/group-{group}-of-{groups}.shard-{shard}-of-{shards}.json"
    )


def previous_manifest(wildcards):
    """The layer group before: it leaves the residual stream at the boundary."""
    run, group = RUNS[wildcards.run], int(wildcards.group)
    part = wildcards.groups, wildcards.shard, wildcards.shards
    return [run.path(extraction_manifest(group - 1, *part))] if group else []


def take_turns():
    """Take the turn of everything that several runs share and that is still to be made.

    Every process takes its turns in the same order: so no two wait for each other.
    """
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


def scheduled(wildcards):
    """Whether a scheduler starts the jobs, as 0 or 1."""
    return int(bool(workflow.remote_exec or not workflow.local_exec))


# Functions, because Snakemake knows no number of cores where it only shows something.
def all_cores(wildcards):
    """The cores that Snakemake was given."""
    return workflow.cores


def ablation_threads(run):
    """The threads of the ablation job."""
    return run.settings.execution.threads or workflow.cores


def extraction_threads(run):
    """The threads of an extraction job: all that work at a time share the cores."""
    return run.settings.execution.threads or max(
        1, workflow.cores // run.sequence_shards
    )


def extractions_at_once(run):
    """Extraction jobs that are at work on one machine at a time; a scheduler's are each alone."""
    if scheduled(None):
        return 1
    gpus = workflow.global_resources.get("gpu") if run.on_gpus else None
    return jobs_at_once(
        run.sequence_shards,
        workflow.cores,
        extraction_threads(run),
        None if gpus is None else gpus.value,
        run.settings.execution.gpus_per_job,
    )


def extraction_gpus(wildcards, input):
    """GPUs of an extraction job; none of a run on the CPU, which those who use one do not hold up."""
    run = RUNS[wildcards.run]
    store, group = Path(input.store), int(wildcards.group)
    return scheduler_resources.gpus(store, group, run.settings) if run.on_gpus else 0


def ablation_gpus(wildcards):
    """GPUs of the ablation job."""
    run = RUNS[wildcards.run]
    return run.settings.execution.gpus_per_job if run.on_gpus else 0


def extraction_memory(wildcards, input, attempt):
    """Megabytes of the host that an extraction job asks a scheduler for."""
    settings = RUNS[wildcards.run].settings
    store, group = Path(input.store), int(wildcards.group)
    return scheduler_resources.memory_mb(store, group, settings, attempt)


def ablation_memory(wildcards, input, attempt):
    """The same of the ablation job, which has the layer groups one after the other."""
    settings = RUNS[wildcards.run].settings
    return scheduler_resources.most_memory_mb(Path(input.store), settings, attempt)


def execution(name):
    """A key of the section `execution`: what makes nothing stale travels as a resource, which
    Snakemake does not compare."""
    return of_run(lambda run: getattr(run.settings.execution, name) or "")


def table(path):
    """A table as Snakemake's own report shows it."""
    name = Path(path).stem
    caption = f"../report/tables/{name}.rst"
    return report(path, caption=caption, category="Tables", labels={"table": name})


def figure(path):
    """A figure as Snakemake's own report shows it; of its four files the light SVG."""
    site, kind = Path(path).stem.split("-", 1)
    if not path.endswith(f"-{kind}.svg") or kind not in figures.KINDS:
        return path
    labels = {"site": site, "figure": kind}
    return report(
        path, caption=f"../report/{kind}.rst", category="Figures", labels=labels
    )
