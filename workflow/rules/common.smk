"""Paths of the rules' files, and functions of runs, models and datasets for the rules."""

import functools
import os

from outlier_atlas import products, scheduler_resources, tables
from outlier_atlas.criteria import tables as criteria_tables
from outlier_atlas.digests import Digests
from outlier_atlas.inputs import FOLDER as INPUTS_FOLDER
from outlier_atlas.extraction import choice
from outlier_atlas.files import read_once
from outlier_atlas.planned_run import Package, builtin_files
from outlier_atlas.report import compared_runs, figures
from outlier_atlas.report.templates import TEMPLATES
from outlier_atlas.settings.source import source_kind
from outlier_atlas.workflow import jobs_at_once, signed

MODELS = {run.model.name: run.model for run in RUNS.values()}
DATASETS = {dataset.name: dataset for run in RUNS.values() for dataset in run.datasets}


def one_of(names):
    """Return a regular expression that matches one of some names.

    Names contain letters, digits, `-`, `_` and `.`.
    """
    return "|".join(name.replace(".", r"\.") for name in names)


# Set for each rule, because global constraints would affect a workflow that uses this module.
CONSTRAINTS = dict(
    run=one_of(RUNS),
    model=one_of(MODELS),
    dataset=one_of(DATASETS),
    **dict.fromkeys(["group", "groups", "shard", "shards"], r"\d+"),
)

RESULTS = "results/{run}"

MODEL_RECORD = "resources/models/{model}.json"
# The measurements belong to a model, so all runs of the model share them.
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
# Times differ from run to run, so `render_report` writes this table, and no rule reads it.
TIMES = [
    f"{RESULTS}/tables/{tables.JOB_TIMES.name}.{ending}"
    for ending in ["parquet", "csv"]
]
REPORT = f"{RESULTS}/report.html"
FINDINGS = f"{RESULTS}/findings.json"


def of_run(function):
    """Return a function of wildcards that calls `function` with the run of a job."""
    return signed(lambda wildcards: function(RUNS[wildcards.run]))


def of_all(function):
    """Return a value of the run, or a function of wildcards if there are several runs.

    Snakemake calls a function again for each job.
    """
    return function(RUNS[NAME]) if len(RUNS) == 1 else of_run(function)


def of_model(function):
    """Return a function of wildcards that calls `function` with the model of a job."""
    return signed(lambda wildcards: function(MODELS[wildcards.model]))


def of_dataset(function):
    """Return a function of wildcards that calls `function` with the dataset of a job."""
    return signed(lambda wildcards: function(DATASETS[wildcards.dataset]))


def each(of, settings, planned):
    """Return the parameters of a rule, as a function of the wildcards for each setting.

    Args:
        of: `of_run`, `of_model` or `of_dataset`.
        settings: a function that returns the settings by name. The record of the inputs contains
            the same settings.
        planned: the runs, models or datasets.
    """

    def parameter(name):
        return of(lambda which: settings(which)[name])

    return {
        name: parameter(name) for which in planned.values() for name in settings(which)
    }


def products_of(name):
    """Return the path of the record of a rule's products.

    Jobs compare their inputs with this record.
    """
    return f"{RESULTS}/manifests/{products.FOLDER}/{name}.json"


def shared_products(name):
    """Return the path of the record of a rule's products that several runs share."""
    return f"resources/{products.FOLDER}/{name}.json"


def builtin_products(source):
    """Return the records of the file of a built-in model or text; empty for other sources."""
    if source_kind(source) != "builtin":
        return []
    return [shared_products(f"fetch_package.{package(source[len('builtin:'):]).name}")]


package = functools.cache(Package)


def everything(run):
    """Return the final outputs of a run, which are the records of its rules' products.

    The files in these records need not be named here, because `Inputs.record` detects a missing
    file.
    """
    shared = [f"fetch_model.{run.model.name}"]
    if run.settings.weights.measure:
        shared += [f"measure_weights.{run.model.name}"]
    return [*map(shared_products, shared), *run.products(*run.rules())]


def manifests(run, groups):
    """Return the manifests of all extraction jobs of a run."""
    shards = run.sequence_shards
    return [
        run.path(extraction_manifest(group, groups, shard, shards))
        for group in range(groups)
        for shard in range(shards)
    ]


@functools.cache
def manifest_names(run, groups):
    """Return the manifests of a run as a set, in which each job looks for its own."""
    return frozenset(manifests(run, groups))


def extraction_manifest(group, groups, shard, shards):
    """Return the path of the manifest that a finished extraction job writes."""
    return (
        f"manifests/extraction/group-{group}-of-{groups}.shard-{shard}-of-{shards}.json"
    )


def previous_manifest(wildcards):
    """Return the manifest of the previous layer group, which writes the boundary.

    A named manifest of another number of layer groups or sequence shards is refused.
    """
    run, group = RUNS[wildcards.run], int(wildcards.group)
    part = wildcards.groups, wildcards.shard, wildcards.shards
    named = run.path(extraction_manifest(group, *part))
    groups = layer_groups(run)
    if named not in manifest_names(run, groups):
        sys.exit(
            f"{named}: the configuration has {groups} layer groups and {run.sequence_shards} "
            "sequence shards, with numbers from 0"
        )
    return [run.path(extraction_manifest(group - 1, *part))] if group else []


def figures_of(run):
    """Return the file names of a run's figures, which depend on the measured sites."""
    settings = run.settings
    return tuple(figures.names(settings.extraction.sites, settings.detection))


def rules_done(run):
    """Return the rules whose files other runs of the model or the dataset have left."""
    made = {
        "measure_weights": [
            path.format(model=run.model.name) for path in MEASURED_WEIGHTS
        ],
        "tokenize_dataset": [
            file
            for dataset in run.datasets
            for file in [dataset.tokens, dataset.tokens_record]
        ],
    }
    return [rule for rule, files in made.items() if all(map(os.path.exists, files))]


def planned_models(wildcards):
    """Return the records of the models, except hub models that are not fetched.

    The plan of a hub model does not need its weights.
    """
    return [run.model.record for run in RUNS.values() if run.model.is_fetched]


def records(run):
    """Return the paths of the records of a run."""
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
        # With `layer_groups: auto`, there are none if its record is missing or damaged.
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
            *run.products("draw_figures"),
            # A record of `layer_groups: auto` may exist although a number is configured now.
            *([] if auto else run.products("choose_layer_groups")),
        ],
    )


def scheduled(wildcards):
    """Return whether a scheduler starts the jobs, as 0 or 1."""
    return int(snakemake_internals.is_scheduled(workflow))


# Functions, because Snakemake has no number of cores if it only prints information.
def all_cores(wildcards):
    """Return the number of cores of Snakemake."""
    return workflow.cores


def ablation_threads(run):
    """Return the number of threads of the ablation job."""
    return run.settings.execution.threads or workflow.cores


# A forward pass gains little from more cores. With fewer, a layer group is loaded for each of its
# concurrent jobs, and they are no faster than one job after the other.
ENOUGH_CORES = 8


def extraction_threads(run):
    """Return the number of threads of an extraction job; concurrent jobs share the cores."""
    return run.settings.execution.threads or max(
        workflow.cores // run.sequence_shards, min(workflow.cores, ENOUGH_CORES)
    )


def extractions_at_once(run):
    """Return the number of extraction jobs that run on one machine at the same time.

    With a scheduler, the number is 1.
    """
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
    """Return the number of GPUs of an extraction job; 0 on the CPU.

    Jobs on the CPU do not wait for jobs on GPUs.
    """
    run = RUNS[wildcards.run]
    store, group = Path(input.store), int(wildcards.group)
    return scheduler_resources.gpus(store, group, run.settings) if run.on_gpus else 0


def ablation_gpus(wildcards):
    """Return the number of GPUs of the ablation job."""
    run = RUNS[wildcards.run]
    return run.settings.execution.gpus_per_job if run.on_gpus else 0


def extraction_memory(wildcards, input, attempt):
    """Return the host memory of an extraction job for a scheduler, in megabytes."""
    settings = RUNS[wildcards.run].settings
    store, group = Path(input.store), int(wildcards.group)
    return scheduler_resources.memory_mb(store, group, settings, attempt)


def ablation_memory(wildcards, input, attempt):
    """Return the host memory of the ablation job for a scheduler, in megabytes.

    The job runs the layer groups one after the other.
    """
    settings = RUNS[wildcards.run].settings
    return scheduler_resources.most_memory_mb(Path(input.store), settings, attempt)


def execution(name):
    """Return a key of the section `execution`, or a function that returns it.

    These keys make nothing stale. They are resources, because Snakemake does not compare
    resources.
    """
    return of_all(lambda run: getattr(run.settings.execution, name) or "")


def table(path):
    """Return a table with its caption in Snakemake's report."""
    name = Path(path).stem
    caption = f"../report/tables/{name}.rst"
    return report(path, caption=caption, category="Tables", labels={"table": name})


def figure(path):
    """Return a figure with its caption in Snakemake's report, which shows only the light SVG."""
    site, kind = Path(path).stem.split("-", 1)
    if not path.endswith(f"-{kind}.svg") or kind not in figures.KINDS:
        return path
    labels = {"site": site, "figure": kind}
    return report(
        path, caption=f"../report/{kind}.rst", category="Figures", labels=labels
    )
