"""Files of the rules by name, and what rules ask about the run, the model or the dataset."""

import functools

from outlier_atlas import products, scheduler_resources, tables
from outlier_atlas.criteria import tables as criteria_tables
from outlier_atlas.digests import Digests
from outlier_atlas.inputs import FOLDER as INPUTS_FOLDER
from outlier_atlas.extraction import choice
from outlier_atlas.planned_run import Package, builtin_files
from outlier_atlas.report import compared_runs, figures
from outlier_atlas.report.templates import TEMPLATES
from outlier_atlas.sanitize import visible
from outlier_atlas.settings.source import source_kind
from outlier_atlas.workflow import jobs_at_once

MODELS = {run.model.name: run.model for run in RUNS.values()}
DATASETS = {dataset.name: dataset for run in RUNS.values() for dataset in run.datasets}


def one_of(names):
    """A regular expression for some names, which have letters, digits, `-`, `_` and `.`."""
    return "|".join(name.replace(".", r"\.") for name in names)


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


def figures_of(run):
    """The files of a run's figures, without folder: what is measured decides which there are."""
    settings = run.settings
    return tuple(figures.names(settings.extraction.sites, settings.detection))


def planned_models(wildcards):
    """The records of the models, made where need be; those of the hub are planned for without
    fetching their weights."""
    return [run.model.record for run in RUNS.values() if run.model.is_fetched]


def records(run):
    """Where the records of a run lie."""
    auto = run.layer_groups == "auto"
    groups = choice.read(Path(run.path(choice.CHOICE))) if auto else run.layer_groups
    detected, ablated = run.products("detect_outliers", "ablate")
    return dict(
        run=run.folder,
        model=run.model.record,
        tokens=run.path("tokens.parquet"),
        tokens_inputs=f"resources/{INPUTS_FOLDER}/tokenize_dataset.{run.dataset.name}.json",
        heldout=run.heldout.tokens if run.ablates else None,
        store=run.path("manifests/store.json"),
        detected=detected,
        ablated=ablated,
        # Of `layer_groups: auto` none where its record is missing or damaged.
        manifests=manifests(run, groups or 0),
        datasets=[
            file
            for dataset in run.datasets
            for file in [dataset.documents_record, dataset.tokens_record]
        ],
        outputs=[
            *everything(run),
            *(
                shared_products(f"{name}.{dataset.name}")
                for dataset in run.datasets
                for name in ["fetch_dataset", "tokenize_dataset"]
            ),
            # Left by `layer_groups: auto`, where a number is configured now.
            *([] if auto else run.products("choose_layer_groups")),
        ],
    )


def scheduled(wildcards):
    """Whether a scheduler starts the jobs, as 0 or 1."""
    return int(snakemake_internals.is_scheduled(workflow))


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
    gpus = snakemake_internals.limit_of(workflow, "gpu") if run.on_gpus else None
    return jobs_at_once(
        run.sequence_shards,
        workflow.cores,
        extraction_threads(run),
        gpus,
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
